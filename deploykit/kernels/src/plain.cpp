// Any CPU: C++ with the vectors that GCC and Clang know on every machine, and no instruction of a particular one.
#include "sequence.hpp"

namespace deploykit {
namespace {

struct Plain {
  static constexpr std::int64_t lanes = 4;
  static constexpr int accumulators = 8;
  static constexpr int most_vectors = 4;
  static constexpr int least_rows = 2;
  static constexpr std::int32_t zero_point = 0;

  typedef float F __attribute__((vector_size(16)));
  typedef std::int32_t I __attribute__((vector_size(16)));
  typedef std::uint32_t U __attribute__((vector_size(16)));
  typedef std::int16_t Words __attribute__((vector_size(16)));
  typedef std::uint16_t UnsignedWords __attribute__((vector_size(16)));

  template <class To, class From>
  static To loaded(const From* from) {
    To value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }

  static F set(float value) { return F{value, value, value, value}; }
  static F load(const float* from) { return loaded<F>(from); }
  static I load(const std::int32_t* from) { return loaded<I>(from); }
  static void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }  // two roundings: std::fma is a call without the hardware
  static F min(F most, F value) { return most < value ? most : value; }  // the second where one is NaN
  static F max(F least, F value) { return least > value ? least : value; }
  static F to_float(I value) { return __builtin_convertvector(value, F); }
  static F add_exponent(F value, F power) { return (F)((U)value + ((U)power << 23)); }
  static I magnitude_bits(F value) { return (I)((U)value & 0x7fffffffU); }
  static I max_bits(I a, I b) { return a > b ? a : b; }
  static std::int32_t largest(I value) { return std::max(std::max(value[0], value[1]), std::max(value[2], value[3])); }

  static void quantize(F value, std::uint8_t* to) {
    // What is added rounds to a whole number, halves to even, and leaves it in the lowest bits.
    const U bits = (U)(min(set(127.0F), max(set(-128.0F), value)) + set(12582912.0F));
    for (int lane = 0; lane < lanes; ++lane) to[lane] = static_cast<std::uint8_t>(bits[lane]);
  }

  // Four bytes as 16-bit numbers, those at even places and those at odd ones.
  struct Halves {
    Words even, odd;
  };
  static Halves halves(Words bytes) {
    return {(Words)((UnsignedWords)bytes << 8) >> 8, bytes >> 8};
  }
  static Halves broadcast(const std::uint8_t* from) {
    std::int32_t bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return halves((Words)I{bytes, bytes, bytes, bytes});
  }
  // Two products of numbers up to 128 and up to 127 fit 16 bits.
  static I dot(I sum, const Halves& activations, const std::int8_t* from) {
    const Halves weights = halves(loaded<Words>(from));
    const I pairs = (I)(activations.even * weights.even + activations.odd * weights.odd);
    return sum + (pairs >> 16) + ((I)((U)pairs << 16) >> 16);
  }
};

bool runs_here() { return true; }

std::unique_ptr<Direction> pack_layer(const Spec& spec, const Weights& weights) {
  return std::make_unique<Layer<Plain>>(spec, weights);
}

}  // namespace

extern const Path plain_path{"plain", runs_here, pack_layer};

}  // namespace deploykit
