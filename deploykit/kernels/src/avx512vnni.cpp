// x86-64 with AVX-512 and its VNNI: four products of unsigned and signed bytes are added in one instruction, exactly.
#include <immintrin.h>

#include "sequence.hpp"

namespace deploykit {
namespace {

struct Avx512Vnni {
  using F = __m512;
  using I = __m512i;
  static constexpr std::int64_t lanes = 16;
  static constexpr int accumulators = 24;
  static constexpr int most_vectors = 8;
  static constexpr int least_rows = 3;
  static constexpr std::int32_t zero_point = 128;

  static F set(float value) { return _mm512_set1_ps(value); }
  static F load(const float* from) { return _mm512_loadu_ps(from); }
  static I load(const std::int32_t* from) { return _mm512_loadu_si512(from); }
  static void store(float* to, F value) { _mm512_storeu_ps(to, value); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F bound, F value) { return _mm512_min_ps(bound, value); }  // the second where one is NaN
  static F max(F bound, F value) { return _mm512_max_ps(bound, value); }
  static F to_float(I value) { return _mm512_cvtepi32_ps(value); }
  static F add_exponent(F value, F power) {
    const I shifted = _mm512_slli_epi32(_mm512_castps_si512(power), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(value), shifted));
  }
  static I magnitude_bits(F value) {
    return _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(0x7fffffff));
  }
  static I max_bits(I a, I b) { return _mm512_max_epi32(a, b); }
  static std::int32_t largest(I value) { return _mm512_reduce_max_epi32(value); }
  static void quantize(F value, std::uint8_t* to) {
    const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(value));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(0x80))));
  }
  static I broadcast(const std::uint8_t* from) {
    std::int32_t bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return _mm512_set1_epi32(bytes);
  }
  static I dot(I sum, I activations, const std::int8_t* weights) {
    return _mm512_dpbusd_epi32(sum, activations, _mm512_loadu_si512(weights));
  }
};

bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

std::unique_ptr<Direction> pack_layer(const Spec& spec, const Weights& weights) {
  return std::make_unique<Layer<Avx512Vnni>>(spec, weights);
}

}  // namespace

extern const Path avx512vnni_path{"avx512vnni", runs_here, pack_layer};

}  // namespace deploykit
