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

  // Several groups of rows can run at once without waiting for each other. But for each of them the weights are read
  // anew, from far away in the first steps: where there are no more, all rows had better share them.
  std::int64_t rows_at_once(std::int64_t steps) const override { return steps < few_steps ? 16 : 8; }

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
            std::memcpy(run.y + time(run, at, now) * run.y_step + at * run.y_row, work.h + row * units_,
                        static_cast<std::size_t>(spec_.hidden) * sizeof(float));
          }
        }
      }
    }
    for (std::int64_t row = 0; row < rows; ++row) finish(work, run, order[begin + row], row);
  }

 private:
  static constexpr std::int64_t few_steps = 4;
  // Rows of the input that are multiplied together, so that a block of weights is read once for all of them.
  static constexpr std::int64_t projected_rows = 16;

  // All that one call of run() writes to, beside its outputs: in one piece of memory.
  struct Work {
    Work(const Layer& layer, std::int64_t rows_, const Run& run)
        : rows(rows_),
          chunk(std::max<std::int64_t>(1, std::min(run.steps, projected_rows / rows_))),
          width(layer.input_.vectors() * lanes),
          input_stride(ceil_div(layer.spec_.input, 64) * 64),
          state_stride(ceil_div(layer.units_, 64) * 64) {
      lay_out(layer, nullptr);  // for its size
      memory = Buffer<std::byte>(size, zeroed_size);
      lay_out(layer, memory.data());
    }
    float* share_of(std::int64_t step, std::int64_t row) { return share + (step * rows + row) * width; }

    std::int64_t rows, chunk, width, input_stride, state_stride;
    float *h, *c;
    std::uint8_t* input;      // quantized
    std::uint8_t* state[2];   // quantized h before and after a step
    float* share;             // [step of the chunk, row, vector of gates, lane]: the input's share of the gates
    float* inner;             // what a GRU's reset gate multiplies, or has multiplied
    float* input_scale;
    float* peak;              // of each row's h: what it is divided by before it is rounded, at least 1
    float* reset_peak;
    int now = 0;

   private:
    void lay_out(const Layer& layer, std::byte* base) {
      size = 0;
      const auto take = [&](auto*& pointer, std::int64_t count) {
        pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + size);
        size += static_cast<std::size_t>(ceil_div(count * static_cast<std::int64_t>(sizeof *pointer), 64) * 64);
      };
      const std::int64_t units = rows * layer.units_;
      take(h, units);
      take(c, layer.spec_.kind == Kind::lstm ? units : 0);
      take(input, chunk * rows * input_stride);
      for (auto& one : state) take(one, rows * state_stride);
      zeroed_size = size;  // what follows is written before it is read
      take(share, chunk * rows * width);
      take(inner, layer.spec_.kind == Kind::gru ? units : 0);
      take(input_scale, chunk * rows);
      take(peak, rows);
      take(reset_peak, rows);
    }
    std::size_t size = 0, zeroed_size = 0;
    Buffer<std::byte> memory;
  };

  std::int64_t length(const Run& run, std::int64_t row) const { return run.lengths ? run.lengths[row] : run.steps; }

  std::int64_t time(const Run& run, std::int64_t row, std::int64_t step) const {
    return spec_.reverse ? length(run, row) - 1 - step : step;
  }

  float floor() const { return spec_.relu && spec_.kind == Kind::rnn ? tiny : 1.0F; }

  // ---- start and end

  void start(Work& work, const Run& run, std::int64_t from, std::int64_t row) const {
    const auto bytes = static_cast<std::size_t>(spec_.hidden) * sizeof(float);
    float* h = work.h + row * units_;
    bool sound = true;
    if (run.initial_h) {
      std::memcpy(h, run.initial_h + from * spec_.hidden, bytes);
      sound = peak_bits<Isa>(h, spec_.hidden) < infinity_bits;
    }
    float* c = work.c + row * units_;
    if (run.initial_c && spec_.kind == Kind::lstm) {
      std::memcpy(c, run.initial_c + from * spec_.hidden, bytes);
      sound = sound && peak_bits<Isa>(c, spec_.hidden) < infinity_bits;
    }
    if (!sound) {
      // Rounding would turn a NaN into a number: the whole row carries it along instead.
      std::fill_n(h, units_, std::numeric_limits<float>::quiet_NaN());
      if (spec_.kind == Kind::lstm) std::fill_n(c, units_, std::numeric_limits<float>::quiet_NaN());
    }
    requantize(work, row, work.state[work.now]);
  }

  void requantize(Work& work, std::int64_t row, std::uint8_t* to) const {
    const float* h = work.h + row * units_;
    const float peak = peak_of<Isa>(h, units_, floor());
    work.peak[row] = peak;
    quantize<Isa>(h, units_, levels / peak, to + row * work.state_stride);
  }

  void finish(Work& work, const Run& run, std::int64_t to, std::int64_t row) const {
    const auto bytes = static_cast<std::size_t>(spec_.hidden) * sizeof(float);
    const bool empty = length(run, to) == 0;  // onnxruntime answers zeros then, whatever the state before
    for (const auto& [final, state] : {std::pair(run.final_h, work.h), std::pair(run.final_c, work.c)}) {
      if (!final) continue;
      float* at = final + to * spec_.hidden;
      if (empty) std::fill_n(at, spec_.hidden, 0.0F);
      else std::memcpy(at, state + row * units_, bytes);
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
        if (length(run, order[row]) <= step) {  // what lies there is multiplied, and nobody reads the result
          work.input_scale[at] = 0.0F;
          continue;
        }
        const float* x = run.x + (time(run, order[row], step) * run.batch + order[row]) * input;
        const float peak = peak_of<Isa>(x, input, tiny);
        quantize<Isa>(x, input, levels / peak, work.input + at * work.input_stride);
        work.input_scale[at] = peak / levels;
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
    const float *scale_of_row = work.input_scale, *scales = input_.scale.data(), *biases = bias_.data();
    float* shares = work.share;
    const std::int64_t width = work.width;
    multiply<Gates>(input_, work.input, work.input_stride, rows, first, end,
                    [=](std::int64_t row, std::int64_t unit, const I* sums) INLINE_LAMBDA {
                      const F scale = Isa::set(scale_of_row[row]);
#pragma GCC unroll 4
                      for (int gate = 0; gate < Gates; ++gate) {
                        const std::int64_t at = (unit * Gates + gate) * lanes;
                        Isa::store(shares + row * width + at,
                                   product(sums[gate], scales + at, scale, Isa::load(biases + at)));
                      }
                    });
  }

  // ---- one step

  // Products first, then the gates: these are long chains of dependent operations, and a CPU looks ahead over several
  // units of them only where no product lies between.
  void advance(Work& work, std::int64_t rows, float* share, Pool& pool) const {
    if (two_products_) {
      gru_apart(work, rows, share, pool);
    } else {
      shared(state_, rows, pool, [&](std::int64_t first, std::int64_t last) {
        const Part part{work, rows, share, first, last};
        switch (spec_.kind) {
          case Kind::gru: return gru(part);
          case Kind::lstm: return lstm(part);
          case Kind::rnn: return rnn(part);
        }
      });
    }
    work.now = 1 - work.now;
    for (std::int64_t row = 0; row < rows; ++row) settle(work, row, work.state[work.now]);
  }

  // The state after a step was rounded with the scale 1/127. Where it may lie outside [-1, 1] it is done again: in a
  // ReLU RNN always, in a GRU as long as a given state outlasts, in others never, for theirs is a tanh.
  void settle(Work& work, std::int64_t row, std::uint8_t* next) const {
    float& peak = work.peak[row];
    if (floor() < 1.0F || (spec_.kind == Kind::gru && !(peak <= 1.0F))) requantize(work, row, next);
    else peak = 1.0F;
  }

  // Vectors of units from ``first`` to ``last`` of the rows; ``share`` is the step's, and takes up the state's share.
  struct Part {
    Work& work;
    std::int64_t rows;
    float* share;
    std::int64_t first, last;
  };

  // A gate's share of a sum of products, and what is added to it.
  static INLINE F product(I sum, const float* scale, F peak, F other) {
    return Isa::fma(Isa::mul(Isa::to_float(sum), Isa::load(scale)), peak, other);
  }

  // Add the state's share to that of the input, in gates ``From`` on of ``All``; a GRU's candidate is kept apart.
  template <int All, int Gates, int From = 0>
  void add_state(const Part& part, const Matrix<Isa>& matrix, const std::uint8_t* state,
                 const float* peak_of_row) const {
    constexpr int together = Gates == 3 ? 2 : Gates;
    const float *scales = matrix.scale.data(), *inner_bias = inner_bias_.data();
    float *shares = part.share + From * lanes, *inner = part.work.inner;
    const std::int64_t width = part.work.width, units = units_;
    multiply<Gates>(matrix, state, part.work.state_stride, part.rows, part.first, part.last,
                    [=](std::int64_t row, std::int64_t unit, const I* sums) INLINE_LAMBDA {
                      const F peak = Isa::set(peak_of_row[row]);
                      const float* scale = scales + unit * Gates * lanes;
                      float* share = shares + row * width + unit * All * lanes;
#pragma GCC unroll 4
                      for (int gate = 0; gate < together; ++gate) {
                        float* at = share + gate * lanes;
                        Isa::store(at, product(sums[gate], scale + gate * lanes, peak, Isa::load(at)));
                      }
                      if constexpr (Gates == 3) {
                        const F bias = Isa::load(inner_bias + unit * lanes);
                        Isa::store(inner + row * units + unit * lanes,
                                   product(sums[2], scale + 2 * lanes, peak, bias));
                      }
                    });
  }

  // Calls ``use(gates, place)`` for the vectors of units of each row: where their gates lie, and their place in h.
  template <int Gates, class Use>
  void each_unit(const Part& part, std::int64_t row, Use&& use) const {
    float* gates = part.share + row * part.work.width;
    for (std::int64_t unit = part.first; unit < part.last; ++unit) {
      use(gates + unit * Gates * lanes, row * units_ + unit * lanes);
    }
  }

  void keep(Work& work, std::int64_t row, std::int64_t place, F h, std::uint8_t* next) const {
    Isa::store(work.h + place, h);
    Isa::quantize(Isa::mul(h, Isa::set(levels)), next + row * (work.state_stride - units_) + place);
  }

  // value / (1 + e^-x): what a gate lets through.
  static INLINE F gated(F value, F x) { return Isa::div(value, Isa::add(Isa::set(1.0F), exponential<Isa, -1>(x))); }

  // h' = n + z (h - n), with n = tanh(a) and z = 1 / (1 + e^-b), over one denominator: a division less.
  void blend(const Part& part, std::int64_t row, std::uint8_t* next) const {
    each_unit<3>(part, row, [&](const float* gates, std::int64_t place) INLINE_LAMBDA {
      const F one = Isa::set(1.0F);
      const F z = exponential<Isa, -1>(Isa::load(gates)), n = exponential<Isa, 2>(Isa::load(gates + 2 * lanes));
      const F above = Isa::add(n, one);
      const F sum = Isa::fma(Isa::sub(n, one), z, Isa::mul(Isa::load(part.work.h + place), above));
      keep(part.work, row, place, Isa::div(sum, Isa::fma(above, z, above)), next);
    });
  }

  void gru(const Part& part) const {
    Work& work = part.work;
    add_state<3, 3>(part, state_, work.state[work.now], work.peak);
    for (std::int64_t row = 0; row < part.rows; ++row) {
      each_unit<3>(part, row, [&](float* gates, std::int64_t place) INLINE_LAMBDA {
        const F inner = gated(Isa::load(work.inner + place), Isa::load(gates + lanes));
        Isa::store(gates + 2 * lanes, Isa::add(inner, Isa::load(gates + 2 * lanes)));
      });
      blend(part, row, work.state[1 - work.now]);
    }
  }

  // linear_before_reset = 0: the candidate multiplies the state that the reset gate has scaled.
  void gru_apart(Work& work, std::int64_t rows, float* share, Pool& pool) const {
    std::uint8_t *state = work.state[work.now], *next = work.state[1 - work.now];
    shared(state_, rows, pool, [&](std::int64_t first, std::int64_t last) {
      const Part part{work, rows, share, first, last};
      add_state<3, 2>(part, state_, state, work.peak);
      for (std::int64_t row = 0; row < rows; ++row) {
        each_unit<3>(part, row, [&](const float* gates, std::int64_t place) INLINE_LAMBDA {
          Isa::store(work.inner + place, gated(Isa::load(work.h + place), Isa::load(gates + lanes)));
        });
      }
    });
    for (std::int64_t row = 0; row < rows; ++row) {
      const float* reset = work.inner + row * units_;
      const float peak = peak_of<Isa>(reset, units_, floor());
      work.reset_peak[row] = peak;
      quantize<Isa>(reset, units_, levels / peak, next + row * work.state_stride);
    }
    // ``next`` holds the rounded product now; the new state's rounded form takes the place of the old one's.
    shared(reset_, rows, pool, [&](std::int64_t first, std::int64_t last) {
      const Part part{work, rows, share, first, last};
      add_state<3, 1, 2>(part, reset_, next, work.reset_peak);
      for (std::int64_t row = 0; row < rows; ++row) blend(part, row, state);
    });
    std::swap(work.state[0], work.state[1]);
  }

  void lstm(const Part& part) const {
    Work& work = part.work;
    add_state<4, 4>(part, state_, work.state[work.now], work.peak);
    for (std::int64_t row = 0; row < part.rows; ++row) {
      // c' = f c + i tanh(g) over one denominator: two divisions less.
      each_unit<4>(part, row, [&](const float* gates, std::int64_t place) INLINE_LAMBDA {
        const F one = Isa::set(1.0F);
        const F i = Isa::add(one, exponential<Isa, -1>(Isa::load(gates)));
        const F f = Isa::add(one, exponential<Isa, -1>(Isa::load(gates + 2 * lanes)));
        const F g = exponential<Isa, 2>(Isa::load(gates + 3 * lanes));
        float* cell = work.c + place;
        const F in = Isa::fma(i, g, i);
        const F sum = Isa::fma(Isa::load(cell), in, Isa::mul(Isa::sub(g, one), f));
        Isa::store(cell, Isa::div(sum, Isa::mul(in, f)));
      });
      each_unit<4>(part, row, [&](const float* gates, std::int64_t place) INLINE_LAMBDA {
        const F one = Isa::set(1.0F);
        const F o = Isa::add(one, exponential<Isa, -1>(Isa::load(gates + lanes)));
        const F e = exponential<Isa, 2>(Isa::load(work.c + place));
        keep(work, row, place, Isa::div(Isa::sub(e, one), Isa::fma(o, e, o)), work.state[1 - work.now]);
      });
    }
  }

  void rnn(const Part& part) const {
    Work& work = part.work;
    std::uint8_t* next = work.state[1 - work.now];
    add_state<1, 1>(part, state_, work.state[work.now], work.peak);
    for (std::int64_t row = 0; row < part.rows; ++row) {
      each_unit<1>(part, row, [&](const float* gates, std::int64_t place) INLINE_LAMBDA {
        // Nothing else of the old state comes through but its rounded form, which is never NaN.
        const F sum = Isa::fma(Isa::load(work.h + place), Isa::set(0.0F), Isa::load(gates));
        if (spec_.relu) {
          keep(work, row, place, Isa::max(Isa::set(0.0F), sum), next);
          return;
        }
        const F one = Isa::set(1.0F), e = exponential<Isa, 2>(sum);
        keep(work, row, place, Isa::div(Isa::sub(e, one), Isa::add(e, one)), next);
      });
    }
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
