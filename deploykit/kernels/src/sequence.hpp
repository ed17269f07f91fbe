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
#include <utility>

#include "matrix.hpp"
#include "numbers.hpp"

namespace deploykit {
namespace {

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

  float floor() const { return spec_.relu && spec_.kind == Kind::rnn ? tiny : 1.0F; }

  // ---- start and end

  void start(Work& work, const Run& run, std::int64_t from, std::int64_t row) const {
    const auto bytes = static_cast<std::size_t>(spec_.hidden) * sizeof(float);
    float* h = work.h.data() + row * units_;
    bool sound = true;
    if (run.initial_h) {
      std::memcpy(h, run.initial_h + from * spec_.hidden, bytes);
      sound = peak_bits<Isa>(h, spec_.hidden) < infinity_bits;
    }
    if (run.initial_c && spec_.kind == Kind::lstm) {
      float* c = work.c.data() + row * units_;
      std::memcpy(c, run.initial_c + from * spec_.hidden, bytes);
      sound = sound && peak_bits<Isa>(c, spec_.hidden) < infinity_bits;
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
    const float peak = peak_of<Isa>(h, units_, floor());
    work.peak[static_cast<std::size_t>(row)] = peak;
    quantize<Isa>(h, units_, levels / peak, to.data() + row * work.state_stride);
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
        const float peak = peak_of<Isa>(x, input, tiny);
        quantize<Isa>(x, input, levels / peak, work.input.data() + at * work.input_stride);
        work.input_scale[static_cast<std::size_t>(at)] = peak / levels;
        last = at + 1;
      }
    }
    shared(input_, last, pool, [&](std::int64_t first, std::int64_t end) {
      switch (spec_.kind) {
        case Kind::gru: return project<3>(work, last, first, end);
        case Kind::lstm: return project<4>(work, last, first, end);
        case Kind::rnn: return project<1>(work, last, first, end);
      }
    });
  }

  template <int Gates>
  void project(Work& work, std::int64_t rows, std::int64_t first, std::int64_t end) const {
    multiply<Gates>(input_, work.input.data(), work.input_stride, rows, first, end,
                    [&](std::int64_t row, std::int64_t unit, const I* sums) INLINE_LAMBDA {
                      const F scale = Isa::set(work.input_scale[static_cast<std::size_t>(row)]);
                      for (int gate = 0; gate < Gates; ++gate) {
                        const std::int64_t at = (unit * Gates + gate) * lanes;
                        Isa::store(work.share.data() + row * work.width + at,
                                   product(sums[gate], input_.scale.data() + at, scale, Isa::load(bias_.data() + at)));
                      }
                    });
  }

  // ---- one step

  void advance(Work& work, std::int64_t rows, const float* share, Pool& pool) const {
    Buffer<std::uint8_t>& next = work.state[1 - work.now];
    switch (spec_.kind) {
      case Kind::lstm:
        shared(state_, rows, pool, [&](std::int64_t first, std::int64_t last) { lstm(work, rows, share, next, first, last); });
        break;
      case Kind::rnn:
        shared(state_, rows, pool, [&](std::int64_t first, std::int64_t last) { rnn(work, rows, share, next, first, last); });
        break;
      case Kind::gru:
        if (two_products_) {
          gru_apart(work, rows, share, next, pool);
        } else {
          shared(state_, rows, pool, [&](std::int64_t first, std::int64_t last) { gru(work, rows, share, next, first, last); });
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
    shared(state_, rows, pool, [&](std::int64_t first, std::int64_t last) {
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
      const float peak = peak_of<Isa>(reset, units_, floor());
      work.reset_peak[static_cast<std::size_t>(row)] = peak;
      quantize<Isa>(reset, units_, levels / peak, next.data() + row * work.state_stride);
    }
    // ``next`` holds the rounded product now; the new state's rounded form takes the place of the old one's.
    Buffer<std::uint8_t>& after = work.state[work.now];
    shared(reset_, rows, pool, [&](std::int64_t first, std::int64_t last) {
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
