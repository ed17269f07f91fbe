// Numbers of one row, in the vectors of an ``Isa``: how they are rounded to 8 bits, and the exponential function.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "layer.hpp"

// What runs for every vector is put into its caller, where its constants stay in registers.
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace deploykit {
namespace {  // compiled once for each instruction set: never shared between them

constexpr float levels = 127.0F;
constexpr float tiny = 1e-30F;  // least magnitude that a row's scale is made for
constexpr std::int32_t infinity_bits = 0x7f800000;

inline float float_of(std::int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class Isa>
typename Isa::F load_part(const float* from, std::int64_t count) {
  alignas(64) float values[Isa::lanes] = {};
  std::memcpy(values, from, static_cast<std::size_t>(count) * sizeof(float));
  return Isa::load(values);
}

// The largest magnitude of ``count`` numbers, as bits: those of NaN and Inf are the largest.
template <class Isa>
std::int32_t peak_bits(const float* from, std::int64_t count) {
  constexpr std::int64_t lanes = Isa::lanes;
  auto largest = Isa::magnitude_bits(Isa::set(0.0F));
  std::int64_t at = 0;
  for (; at + lanes <= count; at += lanes) largest = Isa::max_bits(largest, Isa::magnitude_bits(Isa::load(from + at)));
  if (at < count) largest = Isa::max_bits(largest, Isa::magnitude_bits(load_part<Isa>(from + at, count - at)));
  return Isa::largest(largest);
}

// At least ``floor``; NaN where a number is NaN or Inf.
template <class Isa>
float peak_of(const float* from, std::int64_t count, float floor) {
  const std::int32_t bits = peak_bits<Isa>(from, count);
  return bits >= infinity_bits ? std::numeric_limits<float>::quiet_NaN() : std::max(float_of(bits), floor);
}

template <class Isa>
void quantize(const float* from, std::int64_t count, float factor, std::uint8_t* to) {
  constexpr std::int64_t lanes = Isa::lanes;
  const auto by = Isa::set(factor);
  std::int64_t at = 0;
  for (; at + lanes <= count; at += lanes) Isa::quantize(Isa::mul(Isa::load(from + at), by), to + at);
  if (at < count) {
    alignas(64) std::uint8_t values[lanes];
    Isa::quantize(Isa::mul(load_part<Isa>(from + at, count - at), by), values);
    std::memcpy(to + at, values, static_cast<std::size_t>(count - at));
  }
}

// 2^x of a vector within [-most_power, most_power]; relative error below 1.8e-7, and none at 0. A NaN stays one, if its
// lowest bits are zero, as are those of any NaN that arithmetic makes. What is added pushes the fraction out of the 24
// bits: the sum's lowest bits are the whole power, which goes to the exponent. The polynomial is the one on [-1/2, 1/2]
// whose largest relative error is smallest, with its constant held at 1.
template <class Isa>
INLINE typename Isa::F power_of_two(typename Isa::F x) {
  using F = typename Isa::F;
  const F push = Isa::set(12582912.0F);
  const F pushed = Isa::add(x, push);
  const F part = Isa::sub(x, Isa::sub(pushed, push));
  F value = Isa::set(1.326472731307149e-3F);
  value = Isa::fma(value, part, Isa::set(9.671512991189957e-3F));
  value = Isa::fma(value, part, Isa::set(5.550733581185341e-2F));
  value = Isa::fma(value, part, Isa::set(2.4022242426872253e-1F));
  value = Isa::fma(value, part, Isa::set(6.931470036506653e-1F));
  value = Isa::fma(value, part, Isa::set(1.0F));
  return Isa::add_exponent(value, pushed);
}

// Beyond 2^most_power sigmoid and tanh are 0 or 1 but for half of float32's last bit, and the product of three such
// powers leaves room for large states.
constexpr float most_power = 26.0F;
constexpr float log2_e = 1.44269504F;

// e^(Factor * x), with its power of two cut to [-most_power, most_power].
template <class Isa, int Factor>
INLINE typename Isa::F exponential(typename Isa::F x) {
  using F = typename Isa::F;
  const F scaled = Isa::mul(x, Isa::set(static_cast<float>(Factor) * log2_e));
  return power_of_two<Isa>(Isa::max(Isa::set(-most_power), Isa::min(Isa::set(most_power), scaled)));
}

}  // namespace
}  // namespace deploykit
