// How fast can this CPU, one thread, sum products of 8-bit numbers? From each cache, by the best instruction it has.
// Prints a line for each size of the weights: bytes, 10^9 multiply-accumulates a second, 10^9 bytes read a second.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__AVX512VNNI__)
using I = __m512i;
I zero() { return _mm512_setzero_si512(); }
I all(char value) { return _mm512_set1_epi8(value); }
I load(const char* from) { return _mm512_load_si512(from); }
I dot(I sum, I a, I b) { return _mm512_dpbusd_epi32(sum, a, b); }
I mixed(I a, I b) { return _mm512_xor_si512(a, b); }
#else
using I = __m256i;
I zero() { return _mm256_setzero_si256(); }
I all(char value) { return _mm256_set1_epi8(value); }
I load(const char* from) { return _mm256_load_si256(reinterpret_cast<const I*>(from)); }
#if defined(__AVXVNNI__)
I dot(I sum, I a, I b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#else
I dot(I sum, I a, I b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
}
#endif
I mixed(I a, I b) { return _mm256_xor_si256(a, b); }
#endif

constexpr std::size_t width = sizeof(I), vectors = 8;

// Seconds for one pass over ``bytes``, the fastest of several tries of about 5 ms each.
template <class Step>
double fastest(const char* data, std::size_t bytes, Step step) {
  double best = 1e9;
  const std::size_t passes = std::max<std::size_t>(1, (std::size_t{512} << 20) / bytes / 2);
  for (int attempt = 0; attempt < 40; ++attempt) {
    I sums[vectors];
    for (auto& sum : sums) sum = zero();
    const double start = now();
    for (std::size_t pass = 0; pass < passes; ++pass) {
      for (std::size_t at = 0; at + vectors * width <= bytes; at += vectors * width) {
#pragma GCC unroll 8
        for (std::size_t one = 0; one < vectors; ++one) sums[one] = step(sums[one], load(data + at + one * width));
        asm volatile("" : : "r"(data) : "memory");  // every pass reads anew
      }
    }
    const double took = (now() - start) / static_cast<double>(passes);
    for (auto& sum : sums) asm volatile("" : : "m"(sum));
    best = std::min(best, took);
  }
  return best;
}

}  // namespace

int main() {
  constexpr std::size_t most = std::size_t{16} << 20;
  auto* data = static_cast<char*>(std::aligned_alloc(4096, most));
  if (!data) return 1;
  std::memset(data, 1, most);
  const I activations = all(3);
  for (std::size_t kib : {12, 24, 48, 96, 192, 256, 384, 768, 1024, 3072, 4096, 12288}) {
    const std::size_t bytes = kib << 10;
    const double work = fastest(data, bytes, [&](I sum, I weights) { return dot(sum, activations, weights); });
    const double read = fastest(data, bytes, [&](I sum, I weights) { return mixed(sum, weights); });
    std::printf("%zu %.1f %.1f\n", bytes, static_cast<double>(bytes) / work / 1e9, static_cast<double>(bytes) / read / 1e9);
  }
  std::free(data);
}
