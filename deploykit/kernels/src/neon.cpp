// 64-bit Arm with the dot product extension: four products of signed bytes are added in one instruction, exactly.
#include <arm_neon.h>
#include <sys/auxv.h>

#include "sequence.hpp"

namespace deploykit {
namespace {

struct Neon {
  using F = float32x4_t;
  using I = int32x4_t;
  static constexpr std::int64_t lanes = 4;
  static constexpr int accumulators = 24;
  static constexpr int most_vectors = 8;
  static constexpr int least_rows = 3;
  static constexpr std::int32_t zero_point = 0;

  static F set(float value) { return vdupq_n_f32(value); }
  static F load(const float* from) { return vld1q_f32(from); }
  static I load(const std::int32_t* from) { return vld1q_s32(from); }
  static void store(float* to, F value) { vst1q_f32(to, value); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F min(F bound, F value) { return vminq_f32(bound, value); }  // NaN where either is
  static F max(F bound, F value) { return vmaxq_f32(bound, value); }
  static F to_float(I value) { return vcvtq_f32_s32(value); }
  static F add_exponent(F value, F power) {
    const I shifted = vshlq_n_s32(vreinterpretq_s32_f32(power), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(value), shifted));
  }
  static I magnitude_bits(F value) { return vandq_s32(vreinterpretq_s32_f32(value), vdupq_n_s32(0x7fffffff)); }
  static I max_bits(I a, I b) { return vmaxq_s32(a, b); }
  static std::int32_t largest(I value) { return vmaxvq_s32(value); }
  static void quantize(F value, std::uint8_t* to) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(value));
    const int8x8_t bytes = vqmovn_s16(vcombine_s16(words, words));
    const std::int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    std::memcpy(to, &four, sizeof four);
  }
  static int8x16_t broadcast(const std::uint8_t* from) {
    std::int32_t bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
  }
  static I dot(I sum, int8x16_t activations, const std::int8_t* weights) {
    return vdotq_s32(sum, vld1q_s8(weights), activations);
  }
};

// HWCAP_ASIMDDP, which older headers of the C library do not name.
bool runs_here() { return (getauxval(AT_HWCAP) & (1UL << 20)) != 0; }

std::unique_ptr<Direction> pack_layer(const Spec& spec, const Weights& weights) {
  return std::make_unique<Layer<Neon>>(spec, weights);
}

}  // namespace

extern const Path neon_path{"neon", runs_here, pack_layer};

}  // namespace deploykit
