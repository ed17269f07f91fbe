// Random layers and inputs for check.cpp, and one way to run them: as operators.cpp does, without onnxruntime.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../deploykit/kernels/src/layer.hpp"

namespace check {

using deploykit::Kind;

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void expect(bool holds, const std::string& what) {
  if (!holds) throw Failure(what);
}

// splitmix64: the same numbers with every compiler and standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31U);
  }
  std::int64_t below(std::int64_t bound) { return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(bound)); }
  bool coin() { return below(2) == 1; }
  float real(double from, double to) {
    return static_cast<float>(from + (to - from) * (static_cast<double>(next() >> 11U) / 9007199254740992.0));
  }
  template <std::size_t N>
  std::int64_t of(const std::int64_t (&choices)[N]) {
    return choices[below(static_cast<std::int64_t>(N))];
  }

 private:
  std::uint64_t state_;
};

struct Net {
  deploykit::Spec spec;
  std::vector<std::int8_t> w, r;
  std::vector<float> w_scale, r_scale, bias;

  std::int64_t width() const { return deploykit::gates_of(spec.kind) * spec.hidden; }
};

struct Data {
  std::int64_t steps = 0, batch = 0;
  std::vector<float> x;
  std::vector<std::int32_t> lengths;  // these three: or empty
  std::vector<float> h, c;

  std::int64_t length(std::int64_t row) const {
    return lengths.empty() ? steps : lengths[static_cast<std::size_t>(row)];
  }
};

struct Answer {
  std::vector<float> y, h, c;  // y [steps, batch, hidden]
};

inline std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline bool same(const Answer& a, const Answer& b) { return same(a.y, b.y) && same(a.h, b.h) && same(a.c, b.c); }

// ``values`` behind ``shift`` other elements, and nothing behind them: off any alignment, and at the end of their
// memory, where AddressSanitizer sees who reads on.
template <class T>
class Shifted {
 public:
  Shifted(const std::vector<T>& values, std::size_t shift) : all_(values.size() + shift), shift_(shift) {
    std::copy(values.begin(), values.end(), all_.begin() + static_cast<std::ptrdiff_t>(shift));
  }
  // Null for none at all.
  T* data() { return all_.size() == shift_ ? nullptr : all_.data() + shift_; }

 private:
  std::vector<T> all_;
  std::size_t shift_;
};

inline std::unique_ptr<deploykit::Direction> packed(const deploykit::Path& path, const Net& net, std::size_t shift = 0) {
  Shifted<std::int8_t> w(net.w, shift), r(net.r, shift);
  Shifted<float> w_scale(net.w_scale, shift), r_scale(net.r_scale, shift), bias(net.bias, shift);
  return path.pack(net.spec, {w.data(), r.data(), w_scale.data(), r_scale.data(), bias.data()});
}

// Every task in a thread of its own, all at once.
class Threads final : public deploykit::Pool {
 public:
  using Pool::each;
  void each(std::size_t count, Task task, void* data) override {
    std::vector<std::thread> threads;
    for (std::size_t index = 0; index < count; ++index) threads.emplace_back(task, data, index);
    for (auto& thread : threads) thread.join();
    shared += count;
  }
  std::size_t shared = 0;
};

struct How {
  std::size_t shift = 0;
  bool groups_at_once = false;  // the groups of rows in threads
  bool y = true, final = true;
};

inline Answer run(const deploykit::Direction& direction, const Net& net, const Data& data, deploykit::Pool& pool,
                  How how = {}) {
  constexpr float untouched = 12345.678F;
  const std::int64_t hidden = net.spec.hidden, row = hidden + 3, step = data.batch * row + 5;
  const bool lstm = net.spec.kind == Kind::lstm;
  Shifted<float> x(data.x, how.shift), h(data.h, how.shift), c(data.c, how.shift);
  Shifted<std::int32_t> lengths(data.lengths, how.shift);
  Shifted<float> y(std::vector<float>(size(data.steps * step), untouched), how.shift);
  Shifted<float> final_h(std::vector<float>(size(data.batch * hidden), untouched), how.shift);
  Shifted<float> final_c(std::vector<float>(size(lstm ? data.batch * hidden : 0), untouched), how.shift);
  deploykit::Run run{data.steps, data.batch, x.data(), lengths.data(), h.data(), c.data(),
                     how.y ? y.data() : nullptr, step, row, how.final ? final_h.data() : nullptr,
                     how.final ? final_c.data() : nullptr};
  std::vector<std::int64_t> order(size(data.batch));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return data.length(a) > data.length(b); });
  const std::int64_t together = direction.rows_at_once(data.steps);
  const std::int64_t groups = (data.batch + together - 1) / together;
  auto group = [&](std::size_t index) {
    const auto at = static_cast<std::int64_t>(index);
    direction.run(run, order.data(), data.batch * at / groups, data.batch * (at + 1) / groups, pool);
  };
  deploykit::Serial serial;
  Threads threads;
  if (how.groups_at_once) threads.Pool::each(size(groups), group);
  else serial.Pool::each(size(groups), group);

  Answer answer;
  if (how.y && y.data()) {
    for (std::int64_t now = 0; now < data.steps; ++now) {
      for (std::int64_t at = 0; at < step; ++at) {
        const float value = y.data()[now * step + at];
        if (at < data.batch * row && at % row < hidden) answer.y.push_back(value);
        else expect(value == untouched, "what lies between the rows of y was written to");
      }
    }
  }
  if (how.final) {
    if (final_h.data()) answer.h.assign(final_h.data(), final_h.data() + data.batch * hidden);
    if (final_c.data()) answer.c.assign(final_c.data(), final_c.data() + data.batch * hidden);
  }
  return answer;
}

// ---- random ones

struct Sizes {
  std::int64_t input, hidden, batch, steps;
};

// Weights of a matrix [rows, columns]. ``paired``: no two neighbours of a column add up to more than 128.
inline std::vector<std::int8_t> random_weights(Random& random, std::int64_t rows, std::int64_t columns, bool paired) {
  std::vector<std::int8_t> weights(size(rows * columns));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      std::int64_t least = -127, largest = 127;
      if (paired && row % 2 == 1) {
        const int before = weights[size((row - 1) * columns + column)];
        least = std::max<std::int64_t>(-127, -128 - std::min(before, 0));
        largest = std::min<std::int64_t>(127, 128 - std::max(before, 0));
      }
      weights[size(row * columns + column)] = static_cast<std::int8_t>(least + random.below(largest - least + 1));
    }
  }
  return weights;
}

// Variants in turn, so that few layers cover them all.
inline Net random_net(Random& random, std::int64_t variant, std::int64_t input, std::int64_t hidden) {
  Net net;
  const std::int64_t kind = variant % 5;
  net.spec.kind = kind < 2 ? Kind::gru : kind == 2 ? Kind::lstm : Kind::rnn;
  net.spec.linear_before_reset = kind == 0;
  net.spec.relu = kind == 4;
  net.spec.input = input;
  net.spec.hidden = hidden;
  net.spec.reverse = variant / 5 % 2 == 1;
  const bool paired = variant / 10 % 2 == 1;
  net.w = random_weights(random, input, net.width(), paired);
  net.r = random_weights(random, hidden, net.width(), paired);
  // Gates of about 1, whatever the size: 73 is what uniform bytes deviate by.
  const double of_input = 1.5 / (73.0 * std::sqrt(static_cast<double>(input)));
  const double of_state = 1.0 / (73.0 * std::sqrt(static_cast<double>(hidden)));
  for (std::int64_t at = 0; at < net.width(); ++at) {
    net.w_scale.push_back(random.real(0.3, 1.0) * static_cast<float>(of_input));
    net.r_scale.push_back(random.real(0.3, 1.0) * static_cast<float>(of_state));
  }
  for (std::int64_t at = 0; random.below(4) > 0 && at < 2 * net.width(); at += 1) net.bias.push_back(0.0F);
  net.bias.resize(net.bias.empty() ? 0 : size(2 * net.width()));
  for (float& value : net.bias) value = random.real(-0.5, 0.5);
  return net;
}

inline Data random_data(Random& random, const Net& net, std::int64_t batch, std::int64_t steps) {
  Data data;
  data.steps = steps;
  data.batch = batch;
  for (std::int64_t row = 0; row < steps * batch; ++row) {
    const float magnitude = std::pow(10.0F, random.real(-1.0, 0.5));
    for (std::int64_t at = 0; at < net.spec.input; ++at) data.x.push_back(random.real(-1.0, 1.0) * magnitude);
  }
  const bool lengths = random.coin(), state = random.coin(), cell = random.coin();
  for (std::int64_t row = 0; row < batch; ++row) {
    if (lengths) data.lengths.push_back(static_cast<std::int32_t>(random.below(steps + 1)));
    // Some of the states lie beyond what a step could give.
    const float magnitude = random.below(3) == 0 ? 3.0F : 0.9F;
    for (std::int64_t at = 0; at < net.spec.hidden; ++at) {
      if (state) data.h.push_back(random.real(-1.0, 1.0) * magnitude);
      if (cell && net.spec.kind == Kind::lstm) data.c.push_back(random.real(-2.0, 2.0));
    }
  }
  return data;
}

inline std::string told(const Net& net, const Data& data) {
  const char* kind = net.spec.kind == Kind::gru ? (net.spec.linear_before_reset ? "gru" : "gru, reset before")
                     : net.spec.kind == Kind::lstm ? "lstm" : net.spec.relu ? "relu rnn" : "rnn";
  return std::string(kind) + (net.spec.reverse ? ", reverse" : "") + ", input " + std::to_string(net.spec.input) +
         ", hidden " + std::to_string(net.spec.hidden) + ", batch " + std::to_string(data.batch) + ", steps " +
         std::to_string(data.steps) + (data.lengths.empty() ? "" : ", lengths") + (data.h.empty() ? "" : ", h") +
         (data.c.empty() ? "" : ", c") + (net.bias.empty() ? "" : ", bias");
}

}  // namespace check
