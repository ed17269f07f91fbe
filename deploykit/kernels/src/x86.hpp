// Vectors of 8 float32 numbers on x86-64 with AVX2 and FMA, without the sum of products: three paths share them.
#pragma once

#include <immintrin.h>

#include "sequence.hpp"

namespace deploykit {
namespace {

struct Vectors256 {
  using F = __m256;
  using I = __m256i;
  static constexpr std::int64_t lanes = 8;
  static constexpr int accumulators = 12;
  static constexpr int most_vectors = 8;
  static constexpr int least_rows = 3;

  static F set(float value) { return _mm256_set1_ps(value); }
  static F load(const float* from) { return _mm256_loadu_ps(from); }
  static I load(const std::int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static void store(float* to, F value) { _mm256_storeu_ps(to, value); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F min(F bound, F value) { return _mm256_min_ps(bound, value); }  // the second where one is NaN
  static F max(F bound, F value) { return _mm256_max_ps(bound, value); }
  static F to_float(I value) { return _mm256_cvtepi32_ps(value); }
  // The value with the lowest bits of ``power`` added to its exponent.
  static F add_exponent(F value, F power) {
    const I shifted = _mm256_slli_epi32(_mm256_castps_si256(power), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), shifted));
  }
  static I magnitude_bits(F value) {
    return _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(0x7fffffff));
  }
  static I max_bits(I a, I b) { return _mm256_max_epi32(a, b); }
  static std::int32_t largest(I value) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, _MM_SHUFFLE(1, 0, 3, 2)));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, _MM_SHUFFLE(2, 3, 0, 1)));
    return _mm_cvtsi128_si32(half);
  }

 protected:
  // Rounded and cut to int8, ``flip`` 0x80 makes them unsigned with zero point 128.
  static void narrow(F value, std::uint8_t* to, char flip) {
    const I wide = _mm256_cvtps_epi32(value);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    const __m128i bytes = _mm_xor_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(flip));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
  }
  static I four_bytes(const std::uint8_t* from) {
    std::int32_t bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return _mm256_set1_epi32(bytes);
  }
  static I weights(const std::int8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
};

// Activations as unsigned numbers with zero point 128.
struct Unsigned256 : Vectors256 {
  static constexpr std::int32_t zero_point = 128;
  static void quantize(F value, std::uint8_t* to) { narrow(value, to, static_cast<char>(0x80)); }
  static I broadcast(const std::uint8_t* from) { return four_bytes(from); }
};

}  // namespace
}  // namespace deploykit
