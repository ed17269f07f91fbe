// x86-64 with AVX2 and AVX-VNNI, as on client CPUs without AVX-512.
#include <cpuid.h>

#include "x86.hpp"

namespace deploykit {
namespace {

struct AvxVnni : Unsigned256 {
  static I dot(I sum, I activations, const std::int8_t* from) {
    return _mm256_dpbusd_avx_epi32(sum, activations, weights(from));
  }
};

bool runs_here() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;  // not every compiler knows this CPU feature by name
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1U << 4)) != 0;
}

std::unique_ptr<Direction> pack_layer(const Spec& spec, const Weights& weights) {
  return std::make_unique<Layer<AvxVnni>>(spec, weights);
}

}  // namespace

extern const Path avxvnni_path{"avxvnni", runs_here, pack_layer};

}  // namespace deploykit
