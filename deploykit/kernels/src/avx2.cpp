// x86-64 with AVX2 and FMA. Its product of unsigned and signed bytes adds two neighbours in 16 bits and saturates there.
#include "x86.hpp"

namespace deploykit {
namespace {

// For weights of which no two neighbours can saturate: 255 * (their sum) fits 16 bits.
struct Avx2 : Unsigned256 {
  static I dot(I sum, I activations, const std::int8_t* from) {
    const I pairs = _mm256_maddubs_epi16(activations, weights(from));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

// For any weights but -128: with the activations' signs moved to them, two products are 2 * 127 * 128 at most.
struct Avx2Any : Vectors256 {
  struct Activations {
    I magnitude, sign;
  };
  static constexpr std::int32_t zero_point = 0;
  static void quantize(F value, std::uint8_t* to) { narrow(value, to, 0); }
  static Activations broadcast(const std::uint8_t* from) {
    const I bytes = four_bytes(from);
    return {_mm256_abs_epi8(bytes), bytes};
  }
  static I dot(I sum, Activations activations, const std::int8_t* from) {
    const I pairs = _mm256_maddubs_epi16(activations.magnitude, _mm256_sign_epi8(weights(from), activations.sign));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

// Whether no product of two neighbouring weights of a column with unsigned bytes leaves 16 bits.
bool fits(const std::int8_t* matrix, std::int64_t rows, std::int64_t columns) {
  for (std::int64_t row = 0; row < rows; row += 2) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const int first = matrix[row * columns + column];
      const int second = row + 1 < rows ? matrix[(row + 1) * columns + column] : 0;
      const int above = std::max(first, 0) + std::max(second, 0), below = std::min(first, 0) + std::min(second, 0);
      if (255 * above > 32767 || 255 * below < -32768) return false;
    }
  }
  return true;
}

bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

std::unique_ptr<Direction> pack_layer(const Spec& spec, const Weights& weights) {
  const std::int64_t columns = gates_of(spec.kind) * spec.hidden;
  if (fits(weights.w, spec.input, columns) && fits(weights.r, spec.hidden, columns)) {
    return std::make_unique<Layer<Avx2>>(spec, weights);
  }
  return std::make_unique<Layer<Avx2Any>>(spec, weights);
}

}  // namespace

extern const Path avx2_path{"avx2", runs_here, pack_layer};

}  // namespace deploykit
