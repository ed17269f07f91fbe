// The arithmetic of a layer, written once for all instruction sets. An ``Isa`` gives vectors of ``lanes`` float32 or
// int32 numbers and the one thing that CPUs differ in: the sum of four products of 8-bit numbers in each lane.
//
// Each row of the input, and of the state in each step, has a scale of its own, so that no row's answer depends on its
// neighbours nor on later steps; and whatever the number of rows that are computed together, each row goes through the
// same operations in the same order (build with -ffp-contract=off), so that this holds to the last bit.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "layer.hpp"

// What runs for every vector is put into its caller, where its constants stay in registers.
#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace deploykit {
namespace {  // compiled once for each instruction set: never shared between them

constexpr float levels = 127.0F;
constexpr float tiny = 1e-30F;  // least magnitude that a row's scale is made for
constexpr std::int32_t infinity_bits = 0x7f800000;
constexpr std::int64_t depth = 4;  // products summed in a lane by one dot

inline std::int64_t ceil_div(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

inline float float_of(std::int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A matrix [rows, gates * units], stored as [block][row / 4][vector of the block][lane][row % 4]. The vectors of a
// block are those of ``wide`` vectors of units, with their gates together; the units that are left over are blocks of
// their own.
template <class Isa>
struct Matrix {
  int gates = 0;
  int wide = 1;
  std::int64_t units = 0;  // in vectors
  std::int64_t quads = 0;
  Buffer<std::int8_t> weights;
  Buffer<std::int32_t> start;  // what an accumulator starts from: it takes back the activations' zero point
  Buffer<float> scale;

  std::int64_t vectors() const { return units * gates; }
  const std::int8_t* block(std::int64_t unit) const { return weights.data() + unit * gates * quads * Isa::lanes * depth; }
};

// ``column(gate)`` is the first of the gate's ``hidden`` columns among the ``stride`` ones of the source.
template <class Isa>
Matrix<Isa> pack(const std::int8_t* source, const float* scale, std::int64_t rows, std::int64_t hidden, int gates,
                 std::int64_t first, std::int64_t stride) {
  constexpr std::int64_t lanes = Isa::lanes;
  Matrix<Isa> to;
  to.gates = gates;
  to.wide = std::max(1, Isa::most_vectors / gates);
  to.units = ceil_div(hidden, lanes);
  to.quads = ceil_div(rows, depth);
  const auto vectors = static_cast<std::size_t>(to.vectors());
  to.weights = Buffer<std::int8_t>(vectors * static_cast<std::size_t>(to.quads * lanes * depth));
  to.start = Buffer<std::int32_t>(vectors * lanes);
  to.scale = Buffer<float>(vectors * lanes);
  for (std::int64_t unit = 0; unit < to.units;) {
    const std::int64_t wide = unit + to.wide <= to.units ? to.wide : 1;
    const std::int64_t width = wide * gates;
    std::int8_t* block = to.weights.data() + unit * gates * to.quads * lanes * depth;
    for (std::int64_t inner = 0; inner < width; ++inner) {
      for (std::int64_t lane = 0; lane < lanes; ++lane) {
        const std::int64_t which = (unit + inner / gates) * lanes + lane;
        if (which >= hidden) continue;
        const std::int64_t column = first + (inner % gates) * hidden + which;
        const auto at = static_cast<std::size_t>((unit * gates + inner) * lanes + lane);
        std::int32_t sum = 0;
        for (std::int64_t row = 0; row < rows; ++row) {
          const std::int8_t value = source[row * stride + column];
          block[(((row / depth) * width + inner) * lanes + lane) * depth + row % depth] = value;
          sum += value;
        }
        to.start[at] = -Isa::zero_point * sum;
        to.scale[at] = scale[column];
      }
    }
    unit += wide;
  }
  return to;
}

// 2^x of a vector within [-bound, bound]; relative error below 1.8e-7, and none at 0. A NaN stays one. What is added
// pushes the fraction out of the 24 bits: the sum's lowest bits are the whole power, which goes to the exponent. The
// polynomial is 2^f's on [-1/2, 1/2] whose largest relative error is smallest, with its constant held at 1.
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

// Beyond 2^bound sigmoid and tanh are 0 or 1 in float32, and the product of three such powers is finite.
constexpr float bound = 40.0F;
constexpr float log2_e = 1.44269504F;

// e^(Factor * x), with its power of two cut to [-bound, bound].
template <class Isa, int Factor>
INLINE typename Isa::F exponential(typename Isa::F x) {
  using F = typename Isa::F;
  const F scaled = Isa::mul(x, Isa::set(static_cast<float>(Factor) * log2_e));
  return power_of_two<Isa>(Isa::max(Isa::set(-bound), Isa::min(Isa::set(bound), scaled)));
}

template <class Isa>
class Layer final : public Direction {
  using F = typename Isa::F;
  using I = typename Isa::I;
  static constexpr std::int64_t lanes = Isa::lanes;

 public:
  Layer(const Spec& spec, const Weights& weights) : spec_(spec), gates_(gates_of(spec.kind)) {
    const std::int64_t hidden = spec.hidden, width = gates_ * hidden;
    two_products_ = spec.kind == Kind::gru && !spec.linear_before_reset;
    input_ = pack<Isa>(weights.w, weights.w_scale, spec.input, hidden, gates_, 0, width);
    state_ = pack<Isa>(weights.r, weights.r_scale, hidden, hidden, two_products_ ? 2 : gates_, 0, width);
    if (two_products_) reset_ = pack<Isa>(weights.r, weights.r_scale, hidden, hidden, 1, 2 * hidden, width);
    units_ = input_.units * lanes;
    bias_ = Buffer<float>(static_cast<std::size_t>(input_.vectors() * lanes));
    inner_bias_ = Buffer<float>(static_cast<std::size_t>(units_));
    for (std::int64_t unit = 0; weights.bias && unit < hidden; ++unit) {
      for (int gate = 0; gate < gates_; ++gate) {
        const float of_input = weights.bias[gate * hidden + unit], of_state = weights.bias[width + gate * hidden + unit];
        // The reset gate multiplies the state's share of the candidate, and its bias with it.
        const bool inner = spec.kind == Kind::gru && spec.linear_before_reset && gate == 2;
        bias_[static_cast<std::size_t>(((unit / lanes) * gates_ + gate) * lanes + unit % lanes)] =
            inner ? of_input : of_input + of_state;
        if (inner) inner_bias_[static_cast<std::size_t>(unit)] = of_state;
      }
    }
    for (Matrix<Isa>* matrix : {&state_, &reset_}) {
      for (std::size_t at = 0; at < matrix->scale.size(); ++at) matrix->scale[at] *= 1.0F / levels;
    }
  }

  std::int64_t rows_at_once() const override { return most_rows; }

  bool shares_columns() const override {
    return static_cast<std::int64_t>(state_.weights.size() + reset_.weights.size()) >= shared_bytes;
  }

  void run(const Run& run, const std::int64_t* order, std::int64_t begin, std::int64_t end, Pool& pool) const override {
    const std::int64_t rows = end - begin;
    if (rows <= 0) return;
    Work work(*this, rows, run);
    const std::int64_t longest = length(run, order[begin]);
    for (std::int64_t row = 0; row < rows; ++row) start(work, run, order[begin + row], row);
    std::int64_t active = rows;
    for (std::int64_t step = 0; step < longest; step += work.chunk) {
      const std::int64_t until = std::min(step + work.chunk, longest);
      project(work, run, order + begin, rows, step, until, pool);
      for (std::int64_t now = step; now < until; ++now) {
        while (length(run, order[begin + active - 1]) <= now) --active;
        advance(work, active, work.share_of(now - step, 0), pool);
        if (run.y) {
          for (std::int64_t row = 0; row < active; ++row) {
            const std::int64_t at = order[begin + row];
            std::memcpy(run.y + time(run, at, now) * run.y_step + at * run.y_row, work.h.data() + row * units_,
                        static_cast<std::size_t>(spec_.hidden) * sizeof(float));
          }
        }
      }
    }
    for (std::int64_t row = 0; row < rows; ++row) finish(work, run, order[begin + row], row);
  }

 private:
  static constexpr std::int64_t most_rows = 8;
  static constexpr std::int64_t shared_bytes = 2 << 20;
  // Rows of the input that are multiplied together, so that a block of weights is read once for all of them.
  static constexpr std::int64_t projected_rows = 32;

  // All that one call of run() writes to, beside its outputs.
  struct Work {
    Work(const Layer& layer, std::int64_t rows_, const Run& run)
        : rows(rows_),
          chunk(std::max<std::int64_t>(1, std::min(run.steps, projected_rows / rows_))),
          width(layer.input_.vectors() * lanes),
          input_stride(ceil_div(layer.spec_.input, 64) * 64),
          state_stride(ceil_div(layer.units_, 64) * 64),
          share(size(chunk * rows * width)),
          input(size(chunk * rows * input_stride)),
          input_scale(size(chunk * rows)),
          h(size(rows * layer.units_)),
          c(size(layer.spec_.kind == Kind::lstm ? rows * layer.units_ : 0)),
          gate(size(layer.two_products_ ? rows * layer.units_ : 0)),
          reset(size(layer.two_products_ ? rows * layer.units_ : 0)),
          peak(size(rows)),
          reset_peak(size(layer.two_products_ ? rows : 0)) {
      for (auto& one : state) one = Buffer<std::uint8_t>(size(rows * state_stride));
    }
    static std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }
    float* share_of(std::int64_t step, std::int64_t row) { return share.data() + (step * rows + row) * width; }

    std::int64_t rows, chunk, width, input_stride, state_stride;
    Buffer<float> share;           // [step of the chunk, row, vector of gates, lane]: the input's share of the gates
    Buffer<std::uint8_t> input;    // quantized
    Buffer<float> input_scale;
    Buffer<float> h, c, gate, reset;
    Buffer<float> peak;            // of each row's h: what it is divided by before it is rounded, at least 1
    Buffer<float> reset_peak;
    Buffer<std::uint8_t> state[2];  // quantized h before and after a step
    int now = 0;
  };

  std::int64_t length(const Run& run, std::int64_t row) const { return run.lengths ? run.lengths[row] : run.steps; }

  std::int64_t time(const Run& run, std::int64_t row, std::int64_t step) const {
    return spec_.reverse ? length(run, row) - 1 - step : step;
  }

  // ---- one row's numbers

  static F load_part(const float* from, std::int64_t count) {
    alignas(64) float values[lanes] = {};
    std::memcpy(values, from, static_cast<std::size_t>(count) * sizeof(float));
    return Isa::load(values);
  }

  // The largest magnitude of ``count`` numbers, as bits: those of NaN and Inf are the largest.
  static std::int32_t peak_bits(const float* from, std::int64_t count) {
    I largest = Isa::magnitude_bits(Isa::set(0.0F));
    std::int64_t at = 0;
    for (; at + lanes <= count; at += lanes) largest = Isa::max_bits(largest, Isa::magnitude_bits(Isa::load(from + at)));
    if (at < count) largest = Isa::max_bits(largest, Isa::magnitude_bits(load_part(from + at, count - at)));
    return Isa::largest(largest);
  }

  // At least ``floor``; NaN where a number is NaN or Inf.
  static float peak_of(const float* from, std::int64_t count, float floor) {
    const std::int32_t bits = peak_bits(from, count);
    return bits >= infinity_bits ? std::numeric_limits<float>::quiet_NaN() : std::max(float_of(bits), floor);
  }

  static void quantize(const float* from, std::int64_t count, float factor, std::uint8_t* to) {
    const F by = Isa::set(factor);
    std::int64_t at = 0;
    for (; at + lanes <= count; at += lanes) Isa::quantize(Isa::mul(Isa::load(from + at), by), to + at);
    if (at < count) {
      alignas(64) std::uint8_t values[lanes];
      Isa::quantize(Isa::mul(load_part(from + at, count - at), by), values);
      std::memcpy(to + at, values, static_cast<std::size_t>(count - at));
    }
  }

  float floor() const { return spec_.relu && spec_.kind == Kind::rnn ? tiny : 1.0F; }

  // ---- start and end

  void start(Work& work, const Run& run, std::int64_t from, std::int64_t row) const {
    const auto bytes = static_cast<std::size_t>(spec_.hidden) * sizeof(float);
    float* h = work.h.data() + row * units_;
    bool sound = true;
    if (run.initial_h) {
      std::memcpy(h, run.initial_h + from * spec_.hidden, bytes);
      sound = peak_bits(h, spec_.hidden) < infinity_bits;
    }
    if (run.initial_c && spec_.kind == Kind::lstm) {
      float* c = work.c.data() + row * units_;
      std::memcpy(c, run.initial_c + from * spec_.hidden, bytes);
      sound = sound && peak_bits(c, spec_.hidden) < infinity_bits;
      if (!sound) std::fill_n(c, units_, std::numeric_limits<float>::quiet_NaN());
    }
    // Rounding would turn a NaN into a number: the whole row carries it along instead.
    if (!sound) std::fill_n(h, units_, std::numeric_limits<float>::quiet_NaN());
    if (!sound && spec_.kind == Kind::lstm) {
      std::fill_n(work.c.data() + row * units_, units_, std::numeric_limits<float>::quiet_NaN());
    }
    requantize(work, row, work.state[work.now]);
  }

  void requantize(Work& work, std::int64_t row, Buffer<std::uint8_t>& to) const {
    const float* h = work.h.data() + row * units_;
    const float peak = peak_of(h, units_, floor());
    work.peak[static_cast<std::size_t>(row)] = peak;
    quantize(h, units_, levels / peak, to.data() + row * work.state_stride);
  }

  void finish(Work& work, const Run& run, std::int64_t to, std::int64_t row) const {
    const auto bytes = static_cast<std::size_t>(spec_.hidden) * sizeof(float);
    const bool empty = length(run, to) == 0;  // onnxruntime answers zeros then, whatever the state before
    for (auto [final, state] : {std::pair(run.final_h, &work.h), std::pair(run.final_c, &work.c)}) {
      if (!final || !state->size()) continue;
      float* at = final + to * spec_.hidden;
      if (empty) std::fill_n(at, spec_.hidden, 0.0F);
      else std::memcpy(at, state->data() + row * units_, bytes);
    }
    if (!run.y) return;
    for (std::int64_t step = length(run, to); step < run.steps; ++step) {
      std::fill_n(run.y + step * run.y_step + to * run.y_row, spec_.hidden, 0.0F);
    }
  }

  // ---- products

  // Calls ``use(row, unit, sums)`` for every row and vector of units from ``first`` to ``last``, with the sums of the
  // unit's gates. Few rows run through wide blocks, so that a load of the activations serves many weights; more rows
  // share the weights.
  template <int Gates, class Use>
  static void multiply(const Matrix<Isa>& matrix, const std::uint8_t* rows, std::int64_t stride, std::int64_t count,
                       std::int64_t first, std::int64_t last, Use&& use) {
    constexpr int wide = Isa::most_vectors / Gates > 0 ? Isa::most_vectors / Gates : 1;
    for (std::int64_t unit = first; unit < last;) {
      if (unit + wide <= matrix.units) {
        block<Gates, wide>(matrix, rows, stride, count, unit, use);
        unit += wide;
      } else {
        block<Gates, 1>(matrix, rows, stride, count, unit, use);
        unit += 1;
      }
    }
  }

  // ``first`` of a share of the units that starts a block, for share ``index`` of ``shares``.
  static std::int64_t share_start(const Matrix<Isa>& matrix, std::int64_t index, std::int64_t shares) {
    if (index >= shares) return matrix.units;
    const std::int64_t blocks = matrix.units / matrix.wide;
    return blocks * index / shares * matrix.wide;
  }

  template <int Gates, int Wide, class Use>
  static INLINE void block(const Matrix<Isa>& matrix, const std::uint8_t* rows, std::int64_t stride, std::int64_t count,
                           std::int64_t unit, Use&& use) {
    constexpr int width = Gates * Wide;
    // Of several rows together, as many vectors of units as leave registers for the rows.
    constexpr int narrow = std::max(1, Isa::accumulators / Isa::least_rows / Gates);
    constexpr int part = std::min(Wide, narrow);
    constexpr int tall = std::min(4, Isa::accumulators / (part * Gates));  // more rows need more pointers
    static_assert(Wide % part == 0);
    std::int64_t row = 0;
    if constexpr (tall > 1) {
      for (; row + tall <= count; row += tall) {
        for (int at = 0; at < Wide; at += part) tile<Gates, part, width, tall>(matrix, at, rows, stride, row, unit, use);
      }
    }
    if constexpr (tall > 3) {
      for (; row + 2 <= count; row += 2) {
        for (int at = 0; at < Wide; at += part) tile<Gates, part, width, 2>(matrix, at, rows, stride, row, unit, use);
      }
    }
    for (; row < count; ++row) tile<Gates, Wide, width, 1>(matrix, 0, rows, stride, row, unit, use);
  }

  // ``Rows`` rows from ``row`` on by ``Wide`` vectors of units from ``unit + at`` on, of the block of ``Width`` vectors
  // that starts at ``unit``.
  template <int Gates, int Wide, int Width, int Rows, class Use>
  static INLINE void tile(const Matrix<Isa>& matrix, int at_unit, const std::uint8_t* all_rows, std::int64_t stride,
                          std::int64_t row, std::int64_t unit, Use&& use) {
    const std::int8_t* weights = matrix.block(unit) + at_unit * Gates * lanes * depth;
    const std::uint8_t* rows = all_rows + row * stride;
    const std::int64_t quads = matrix.quads;
    unit += at_unit;
    const std::int32_t* start = matrix.start.data() + unit * Gates * lanes;
    constexpr int width_here = Wide * Gates, all = Rows * width_here;
    I sum[all];  // never pointed to, so that compilers keep it in registers
#pragma GCC unroll 32
    for (int at = 0; at < all; ++at) sum[at] = Isa::load(start + at % width_here * lanes);
    constexpr std::int64_t next = Width * lanes * depth;
    const auto add = [&](std::int64_t ahead) INLINE_LAMBDA {
#pragma GCC unroll 8
      for (int one = 0; one < Rows; ++one) {
        const auto activation = Isa::broadcast(rows + one * stride + ahead * depth);
#pragma GCC unroll 16
        for (int vector = 0; vector < width_here; ++vector) {
          I& to = sum[one * width_here + vector];
          to = Isa::dot(to, activation, weights + ahead * next + vector * lanes * depth);
        }
      }
    };
    std::int64_t quad = 0;
    if constexpr (Rows == 1) {  // with more of them registers run out
      for (; quad + 2 <= quads; quad += 2, weights += 2 * next, rows += 2 * depth) {
        add(0);
        add(1);
      }
    }
    for (; quad < quads; ++quad, weights += next, rows += depth) add(0);
    I sums[all];
#pragma GCC unroll 32
    for (int at = 0; at < all; ++at) sums[at] = sum[at];
    for (int one = 0; one < Rows; ++one) {
      for (int at = 0; at < Wide; ++at) use(row + one, unit + at, sums + one * width_here + at * Gates);
    }
  }

  // ---- the input's share of the gates, for the steps of a chunk

  void project(Work& work, const Run& run, const std::int64_t* order, std::int64_t rows, std::int64_t from,
               std::int64_t until, Pool& pool) const {
    const std::int64_t input = spec_.input;
    std::int64_t last = 0;
    for (std::int64_t step = from; step < until; ++step) {
      for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t at = (step - from) * rows + row;
        if (length(run, order[row]) <= step) continue;  // what lies there is multiplied, and nobody reads the result
        const float* x = run.x + (time(run, order[row], step) * run.batch + order[row]) * input;
        const float peak = peak_of(x, input, tiny);
        quantize(x, input, levels / peak, work.input.data() + at * work.input_stride);
        work.input_scale[static_cast<std::size_t>(at)] = peak / levels;
        last = at + 1;
      }
    }
    const auto part = [&](std::int64_t first, std::int64_t end) {
      const auto use = [&](std::int64_t row, std::int64_t unit, const I* sums, int gates) {
        const F scale = Isa::set(work.input_scale[static_cast<std::size_t>(row)]);
        for (int gate = 0; gate < gates; ++gate) {
          const std::int64_t at = (unit * gates + gate) * lanes;
          const F product = Isa::mul(Isa::to_float(sums[gate]), Isa::load(input_.scale.data() + at));
          Isa::store(work.share.data() + row * work.width + at, Isa::fma(product, scale, Isa::load(bias_.data() + at)));
        }
      };
      const std::uint8_t* rows_at = work.input.data();
      if (gates_ == 3) {
        multiply<3>(input_, rows_at, work.input_stride, last, first, end,
                    [&](std::int64_t row, std::int64_t unit, const I* sums) { use(row, unit, sums, 3); });
      } else if (gates_ == 4) {
        multiply<4>(input_, rows_at, work.input_stride, last, first, end,
                    [&](std::int64_t row, std::int64_t unit, const I* sums) { use(row, unit, sums, 4); });
      } else {
        multiply<1>(input_, rows_at, work.input_stride, last, first, end,
                    [&](std::int64_t row, std::int64_t unit, const I* sums) { use(row, unit, sums, 1); });
      }
    };
    shared(input_, pool, part);
  }

  template <class Part>
  void shared(const Matrix<Isa>& matrix, Pool& pool, Part&& part) const {
    if (!shares_columns() || matrix.units / matrix.wide < column_shares) {
      part(std::int64_t{0}, matrix.units);
      return;
    }
    pool.each(column_shares, [&](std::size_t index) {
      const auto at = static_cast<std::int64_t>(index);
      part(share_start(matrix, at, column_shares), share_start(matrix, at + 1, column_shares));
    });
  }
  static constexpr std::int64_t column_shares = 4;

  // ---- one step

  void advance(Work& work, std::int64_t rows, const float* share, Pool& pool) const {
    Buffer<std::uint8_t>& next = work.state[1 - work.now];
    switch (spec_.kind) {
      case Kind::lstm:
        shared(state_, pool, [&](std::int64_t first, std::int64_t last) { lstm(work, rows, share, next, first, last); });
        break;
      case Kind::rnn:
        shared(state_, pool, [&](std::int64_t first, std::int64_t last) { rnn(work, rows, share, next, first, last); });
        break;
      case Kind::gru:
        if (two_products_) {
          gru_apart(work, rows, share, next, pool);
        } else {
          shared(state_, pool, [&](std::int64_t first, std::int64_t last) { gru(work, rows, share, next, first, last); });
        }
        break;
    }
    work.now = 1 - work.now;
    for (std::int64_t row = 0; row < rows; ++row) settle(work, row, next);
  }

  // The state after a step was rounded with the scale 1/127. Where it may lie outside [-1, 1] it is done again: in a
  // ReLU RNN always, in a GRU as long as a given state outlasts, in others never, for theirs is a tanh.
  void settle(Work& work, std::int64_t row, Buffer<std::uint8_t>& next) const {
    float& peak = work.peak[static_cast<std::size_t>(row)];
    if (floor() < 1.0F || (spec_.kind == Kind::gru && !(peak <= 1.0F))) requantize(work, row, next);
    else peak = 1.0F;
  }

  struct Rowwise {
    F peak;
    const float* share;
    float* h;
    std::uint8_t* q;
  };

  INLINE Rowwise rowwise(Work& work, const float* share, Buffer<std::uint8_t>& next, std::int64_t row, std::int64_t unit,
                  int gates) const {
    return {Isa::set(work.peak[static_cast<std::size_t>(row)]), share + row * work.width + unit * gates * lanes,
            work.h.data() + row * units_ + unit * lanes, next.data() + row * work.state_stride + unit * lanes};
  }

  static INLINE void keep(const Rowwise& at, F h) {
    Isa::store(at.h, h);
    Isa::quantize(Isa::mul(h, Isa::set(levels)), at.q);
  }

  // A gate's share from the state, and what is added to it.
  static INLINE F product(I sum, const float* scale, F peak, F other) {
    return Isa::fma(Isa::mul(Isa::to_float(sum), Isa::load(scale)), peak, other);
  }

  // h' = n + z (h - n), with n = tanh(a) and z = 1 / (1 + e^-b), over one denominator: a division less.
  static INLINE F blended(F candidate, F update, F h) {
    const F one = Isa::set(1.0F);
    const F n = exponential<Isa, 2>(candidate), z = exponential<Isa, -1>(update);
    const F above = Isa::add(n, one);
    const F sum = Isa::fma(Isa::sub(n, one), z, Isa::mul(h, above));
    return Isa::div(sum, Isa::fma(above, z, above));
  }

  // value / (1 + e^-x): what a gate lets through.
  static INLINE F gated(F value, F x) { return Isa::div(value, Isa::add(Isa::set(1.0F), exponential<Isa, -1>(x))); }

  void gru(Work& work, std::int64_t rows, const float* share, Buffer<std::uint8_t>& next, std::int64_t first,
           std::int64_t last) const {
    const std::uint8_t* state = work.state[work.now].data();
    multiply<3>(state_, state, work.state_stride, rows, first, last,
                [&](std::int64_t row, std::int64_t unit, const I* sums) INLINE_LAMBDA {
                  const Rowwise at = rowwise(work, share, next, row, unit, 3);
                  const float* scale = state_.scale.data() + unit * 3 * lanes;
                  const F z = product(sums[0], scale, at.peak, Isa::load(at.share));
                  const F r = product(sums[1], scale + lanes, at.peak, Isa::load(at.share + lanes));
                  const F inner =
                      product(sums[2], scale + 2 * lanes, at.peak, Isa::load(inner_bias_.data() + unit * lanes));
                  const F n = Isa::add(gated(inner, r), Isa::load(at.share + 2 * lanes));
                  keep(at, blended(n, z, Isa::load(at.h)));
                });
  }

  // linear_before_reset = 0: the candidate multiplies the state that the reset gate has scaled.
  void gru_apart(Work& work, std::int64_t rows, const float* share, Buffer<std::uint8_t>& next, Pool& pool) const {
    const std::uint8_t* state = work.state[work.now].data();
    shared(state_, pool, [&](std::int64_t first, std::int64_t last) {
      multiply<2>(state_, state, work.state_stride, rows, first, last,
                  [&](std::int64_t row, std::int64_t unit, const I* sums) INLINE_LAMBDA {
                    const Rowwise at = rowwise(work, share, next, row, unit, 3);
                    const float* scale = state_.scale.data() + unit * 2 * lanes;
                    const F z = product(sums[0], scale, at.peak, Isa::load(at.share));
                    const F r = product(sums[1], scale + lanes, at.peak, Isa::load(at.share + lanes));
                    const std::int64_t place = row * units_ + unit * lanes;
                    Isa::store(work.gate.data() + place, z);
                    Isa::store(work.reset.data() + place, gated(Isa::load(at.h), r));
                  });
    });
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* reset = work.reset.data() + row * units_;
      const float peak = peak_of(reset, units_, floor());
      work.reset_peak[static_cast<std::size_t>(row)] = peak;
      quantize(reset, units_, levels / peak, next.data() + row * work.state_stride);
    }
    // ``next`` holds the rounded product now; the new state's rounded form takes the place of the old one's.
    Buffer<std::uint8_t>& after = work.state[work.now];
    shared(reset_, pool, [&](std::int64_t first, std::int64_t last) {
      multiply<1>(reset_, next.data(), work.state_stride, rows, first, last,
                  [&](std::int64_t row, std::int64_t unit, const I* sums) INLINE_LAMBDA {
                    const Rowwise at = rowwise(work, share, after, row, unit, 3);
                    const F peak = Isa::set(work.reset_peak[static_cast<std::size_t>(row)]);
                    const F n = product(sums[0], reset_.scale.data() + unit * lanes, peak,
                                        Isa::load(at.share + 2 * lanes));
                    const F z = Isa::load(work.gate.data() + row * units_ + unit * lanes);
                    keep(at, blended(n, z, Isa::load(at.h)));
                  });
    });
    std::swap(work.state[0], work.state[1]);
  }

  void lstm(Work& work, std::int64_t rows, const float* share, Buffer<std::uint8_t>& next, std::int64_t first,
            std::int64_t last) const {
    const std::uint8_t* state = work.state[work.now].data();
    multiply<4>(state_, state, work.state_stride, rows, first, last,
                [&](std::int64_t row, std::int64_t unit, const I* sums) INLINE_LAMBDA {
                  const Rowwise at = rowwise(work, share, next, row, unit, 4);
                  const float* scale = state_.scale.data() + unit * 4 * lanes;
                  const auto gate = [&](int one) INLINE_LAMBDA {
                    return product(sums[one], scale + one * lanes, at.peak, Isa::load(at.share + one * lanes));
                  };
                  float* cell = work.c.data() + row * units_ + unit * lanes;
                  const F one = Isa::set(1.0F);
                  // c' = f c + i tanh(g) over one denominator: two divisions less.
                  const F i = Isa::add(one, exponential<Isa, -1>(gate(0)));
                  const F f = Isa::add(one, exponential<Isa, -1>(gate(2)));
                  const F g = exponential<Isa, 2>(gate(3));
                  const F in = Isa::fma(i, g, i);
                  const F sum = Isa::fma(Isa::load(cell), in, Isa::mul(Isa::sub(g, one), f));
                  const F c = Isa::div(sum, Isa::mul(in, f));
                  Isa::store(cell, c);
                  const F o = Isa::add(one, exponential<Isa, -1>(gate(1)));
                  const F e = exponential<Isa, 2>(c);
                  keep(at, Isa::div(Isa::sub(e, one), Isa::fma(o, e, o)));
                });
  }

  void rnn(Work& work, std::int64_t rows, const float* share, Buffer<std::uint8_t>& next, std::int64_t first,
           std::int64_t last) const {
    const std::uint8_t* state = work.state[work.now].data();
    multiply<1>(state_, state, work.state_stride, rows, first, last,
                [&](std::int64_t row, std::int64_t unit, const I* sums) INLINE_LAMBDA {
                  const Rowwise at = rowwise(work, share, next, row, unit, 1);
                  const F sum = product(sums[0], state_.scale.data() + unit * lanes, at.peak, Isa::load(at.share));
                  // Nothing else of the old state comes through but its rounded form, which is never NaN.
                  const F all = Isa::fma(Isa::load(at.h), Isa::set(0.0F), sum);
                  if (spec_.relu) {
                    keep(at, Isa::max(Isa::set(0.0F), all));
                    return;
                  }
                  const F one = Isa::set(1.0F), e = exponential<Isa, 2>(all);
                  keep(at, Isa::div(Isa::sub(e, one), Isa::add(e, one)));
                });
  }

  Spec spec_;
  int gates_;
  bool two_products_ = false;
  std::int64_t units_ = 0;  // hidden units, padded to whole vectors
  Matrix<Isa> input_, state_, reset_;
  Buffer<float> bias_, inner_bias_;
};

}  // namespace
}  // namespace deploykit
