// Stands before the compiler's immintrin.h when check.cpp is built for instructions that this CPU does not have: SIMDe
// (https://github.com/simd-everywhere/simde) computes them with those it has. What SIMDe 0.7.4 lacks is here, written
// after Intel's description of it. The paths' sources are compiled as they are.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// The paths ask before they run.
#define __builtin_cpu_supports(feature) 1

// VCVTPS2DQ, with the rounding of the current mode: to nearest, halves to even. NaN and what does not fit are INT_MIN.
inline simde__m512i emulated_cvtps_epi32(simde__m512 value) {
  simde__m512_private from = simde__m512_to_private(value);
  simde__m512i_private to;
  for (int at = 0; at < 16; ++at) {
    const float whole = __builtin_nearbyintf(from.f32[at]);
    to.i32[at] = whole >= -2147483648.0F && whole < 2147483648.0F ? static_cast<int>(whole) : -2147483647 - 1;
  }
  return simde__m512i_from_private(to);
}

// VCVTDQ2PS
inline simde__m512 emulated_cvtepi32_ps(simde__m512i value) {
  simde__m512i_private from = simde__m512i_to_private(value);
  simde__m512_private to;
  for (int at = 0; at < 16; ++at) to.f32[at] = static_cast<float>(from.i32[at]);
  return simde__m512_from_private(to);
}

inline int emulated_reduce_max_epi32(simde__m512i value) {
  simde__m512i_private from = simde__m512i_to_private(value);
  int largest = from.i32[0];
  for (int at = 1; at < 16; ++at) largest = from.i32[at] > largest ? from.i32[at] : largest;
  return largest;
}

#define _mm512_cvtps_epi32(value) emulated_cvtps_epi32(value)
#define _mm512_cvtepi32_ps(value) emulated_cvtepi32_ps(value)
#define _mm512_reduce_max_epi32(value) emulated_reduce_max_epi32(value)

// AVX-VNNI's name for what AVX-512 VNNI with VL does.
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)
