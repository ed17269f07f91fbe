// Any CPU: C++ without intrinsics, in vectors of a size that compilers make good code of.
#include <cmath>

#include "sequence.hpp"

namespace deploykit {
namespace {

struct Plain {
  static constexpr std::int64_t lanes = 8;
  static constexpr int accumulators = 4;
  static constexpr int most_vectors = 4;
  static constexpr int least_rows = 1;
  static constexpr std::int32_t zero_point = 0;

  template <class T>
  struct Vector {
    T at[lanes];
  };
  using F = Vector<float>;
  using I = Vector<std::int32_t>;

  template <class To, class From, class Op>
  static To each(From a, Op op) {
    To result;
    for (int lane = 0; lane < lanes; ++lane) result.at[lane] = op(a.at[lane]);
    return result;
  }
  template <class V, class Op>
  static V both(V a, V b, Op op) {
    V result;
    for (int lane = 0; lane < lanes; ++lane) result.at[lane] = op(a.at[lane], b.at[lane]);
    return result;
  }
  template <class V, class T>
  static V loaded(const T* from) {
    V result;
    std::memcpy(result.at, from, sizeof result.at);
    return result;
  }

  static F set(float value) {
    F result;
    std::fill_n(result.at, lanes, value);
    return result;
  }
  static F load(const float* from) { return loaded<F>(from); }
  static I load(const std::int32_t* from) { return loaded<I>(from); }
  static void store(float* to, F value) { std::memcpy(to, value.at, sizeof value.at); }
  static F add(F a, F b) { return both(a, b, [](float x, float y) { return x + y; }); }
  static F sub(F a, F b) { return both(a, b, [](float x, float y) { return x - y; }); }
  static F mul(F a, F b) { return both(a, b, [](float x, float y) { return x * y; }); }
  static F div(F a, F b) { return both(a, b, [](float x, float y) { return x / y; }); }
  static F fma(F a, F b, F c) { return add(mul(a, b), c); }  // two roundings: std::fma is a call without the hardware
  static F min(F bound, F value) { return both(bound, value, [](float x, float y) { return x < y ? x : y; }); }
  static F max(F bound, F value) { return both(bound, value, [](float x, float y) { return x > y ? x : y; }); }
  static F to_float(I value) {
    return each<F>(value, [](std::int32_t x) { return static_cast<float>(x); });
  }
  static constexpr float push = 12582912.0F;  // added, it rounds to a whole number, halves to even
  static std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }
  static F add_exponent(F value, F power) {
    return both(value, power, [](float x, float y) {
      return float_of(static_cast<std::int32_t>(bits_of(x) + (bits_of(y) << 23U)));
    });
  }
  static I magnitude_bits(F value) {
    return each<I>(value, [](float x) { return static_cast<std::int32_t>(bits_of(x) & 0x7fffffffU); });
  }
  static I max_bits(I a, I b) {
    return both(a, b, [](std::int32_t x, std::int32_t y) { return std::max(x, y); });
  }
  static std::int32_t largest(I value) { return *std::max_element(value.at, value.at + lanes); }

  static void quantize(F value, std::uint8_t* to) {
    for (int lane = 0; lane < lanes; ++lane) {
      const float cut = value.at[lane] > -128.0F ? (value.at[lane] < 127.0F ? value.at[lane] : 127.0F) : -128.0F;
      to[lane] = static_cast<std::uint8_t>(bits_of(cut + push) - bits_of(push));
    }
  }
  struct Activations {
    std::int32_t at[depth];
  };
  static Activations broadcast(const std::uint8_t* from) {
    Activations result;
    for (int one = 0; one < depth; ++one) result.at[one] = static_cast<std::int8_t>(from[one]);
    return result;
  }
  static I dot(I sum, const Activations& activations, const std::int8_t* weights) {
    for (int lane = 0; lane < lanes; ++lane) {
      for (int one = 0; one < depth; ++one) sum.at[lane] += activations.at[one] * weights[lane * depth + one];
    }
    return sum;
  }
};

bool runs_here() { return true; }

std::unique_ptr<Direction> pack_layer(const Spec& spec, const Weights& weights) {
  return std::make_unique<Layer<Plain>>(spec, weights);
}

}  // namespace

extern const Path plain_path{"plain", runs_here, pack_layer};

}  // namespace deploykit
