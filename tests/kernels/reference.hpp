// What the operators should compute, said once more and plainly, in double precision; shares no code with them.
//
// The rounding of activations is a part of what they compute, and done in float32 as they do: q = round(v * (127 / p)),
// halves to even, with p the row's largest magnitude. The state of each step is the one they answered, so that a
// difference in the last bit cannot grow into another rounding later. What remains is float32's error.
#pragma once

#include "layers.hpp"

namespace check {

class Reference {
 public:
  // ``swapped``: with the first two gates exchanged, to see that this would be noticed (an RNN's sum is negated).
  Reference(const Net& net, const Data& data, const Answer& answer, bool swapped)
      : net_(net), data_(data), answer_(answer), swapped_(swapped) {}

  // The largest error of all, as a part of what is allowed.
  double worst() {
    for (std::int64_t row = 0; row < data_.batch; ++row) one_row(row);
    return worst_;
  }

 private:
  // An error that float32 may make, and a gate's value before its activation.
  struct Value {
    double is = 0, error = 0;
  };
  struct Rounded {
    std::vector<std::int64_t> q;
    double scale = 1;  // of one unit of q
  };
  static constexpr double unit = 6e-8;  // float32 rounds to within this part of a number

  static Rounded rounded(const std::vector<float>& values, float floor) {
    float peak = floor;
    for (float value : values) peak = std::max(peak, std::fabs(value));
    const float factor = 127.0F / peak;
    Rounded result;
    for (float value : values) {
      const float scaled = value * factor;
      result.q.push_back(std::min<std::int64_t>(127, static_cast<std::int64_t>(std::nearbyint(scaled))));
    }
    result.scale = static_cast<double>(peak) / 127.0;
    return result;
  }

  // Sum of row ``at`` and of a column of the matrix, exactly.
  Value product(const Rounded& row, const std::vector<std::int8_t>& matrix, const std::vector<float>& scale,
                std::int64_t column) const {
    std::int64_t sum = 0;
    for (std::size_t at = 0; at < row.q.size(); ++at) {
      sum += row.q[at] * matrix[at * size(net_.width()) + size(column)];
    }
    const double is = static_cast<double>(sum) * row.scale * static_cast<double>(scale[size(column)]);
    return {is, 4 * unit * std::fabs(is)};
  }

  Value bias(std::int64_t at) const {
    const double is = net_.bias.empty() ? 0.0 : static_cast<double>(net_.bias[size(at)]);
    return {is, unit * std::fabs(is)};
  }

  static Value plus(Value a, Value b) { return {a.is + b.is, a.error + b.error + unit * std::fabs(a.is + b.is)}; }
  static Value times(Value a, Value b) {
    return {a.is * b.is, std::fabs(a.is) * b.error + std::fabs(b.is) * a.error + a.error * b.error +
                             unit * std::fabs(a.is * b.is)};
  }
  // The steepest they get within the error, and what their own evaluation may add (e^x is good to 3e-7).
  static Value sigmoid(Value x) { return {1 / (1 + std::exp(-x.is)), 0.25 * x.error + 4e-7}; }
  static Value tanh(Value x) { return {std::tanh(x.is), x.error + 4e-7}; }

  int gate(int which) const { return swapped_ && which < 2 && net_.spec.kind != Kind::rnn ? 1 - which : which; }

  void compare(float found, Value expected, const char* what, std::int64_t row, std::int64_t step) {
    const double error = std::fabs(static_cast<double>(found) - expected.is);
    expect(std::isfinite(found) && std::isfinite(expected.is), std::string(what) + " is not finite");
    const double part = error / (expected.error + 1e-30);
    worst_ = std::max(worst_, part);
    if (part > 1) {
      throw Failure(std::string(what) + " is " + std::to_string(found) + " in row " + std::to_string(row) + " after step " +
                    std::to_string(step) + ", not " + std::to_string(expected.is) + ": off by " + std::to_string(part) +
                    " times what is allowed");
    }
  }

  void one_row(std::int64_t row) {
    const std::int64_t hidden = net_.spec.hidden, input = net_.spec.input, length = data_.length(row);
    const auto part = [&](const std::vector<float>& of, std::int64_t at, std::int64_t count) {
      const auto begin = of.begin() + static_cast<std::ptrdiff_t>(at * count);
      return of.empty() ? std::vector<float>(size(count)) : std::vector<float>(begin, begin + static_cast<std::ptrdiff_t>(count));
    };
    std::vector<float> h = part(data_.h, row, hidden);
    std::vector<Value> c;
    for (float value : part(data_.c, row, hidden)) c.push_back({static_cast<double>(value), 0});
    for (std::int64_t step = 0; step < length; ++step) {
      const std::int64_t now = net_.spec.reverse ? length - 1 - step : step;
      const std::vector<Value> expected = one_step(part(data_.x, now * data_.batch + row, input), h, c);
      const std::vector<float> found = part(answer_.y, now * data_.batch + row, hidden);
      for (std::int64_t at = 0; at < hidden; ++at) compare(found[size(at)], expected[size(at)], "y", row, step);
      h = found;
    }
    if (length == 0) {
      std::fill(h.begin(), h.end(), 0.0F);
      std::fill(c.begin(), c.end(), Value{});
    }
    expect(same(part(answer_.h, row, hidden), h), "final_h is not the last step's state");
    for (std::int64_t at = 0; at < hidden && net_.spec.kind == Kind::lstm; ++at) {
      compare(answer_.c[size(row * hidden + at)], c[size(at)], "final_c", row, length);
    }
    for (std::int64_t step = length; step < data_.steps; ++step) {
      const std::vector<float> behind = part(answer_.y, step * data_.batch + row, hidden);
      expect(same(behind, std::vector<float>(size(hidden))), "y is not zero behind a row's end");
    }
  }

  std::vector<Value> one_step(const std::vector<float>& x, const std::vector<float>& h, std::vector<Value>& c) const {
    const std::int64_t hidden = net_.spec.hidden, width = net_.width();
    const bool relu = net_.spec.relu;
    const Rounded of_x = rounded(x, 1e-30F), of_h = rounded(h, relu ? 1e-30F : 1.0F);
    const auto both = [&](int which, std::int64_t at) {
      const std::int64_t column = gate(which) * hidden + at;
      return plus(plus(product(of_x, net_.w, net_.w_scale, column), product(of_h, net_.r, net_.r_scale, column)),
                  plus(bias(column), bias(width + column)));
    };
    std::vector<Value> result;
    if (net_.spec.kind == Kind::rnn) {
      for (std::int64_t at = 0; at < hidden; ++at) {
        Value sum = both(0, at);
        if (swapped_) sum.is = -sum.is;
        result.push_back(relu ? Value{std::max(sum.is, 0.0), sum.error} : tanh(sum));
      }
    } else if (net_.spec.kind == Kind::lstm) {
      for (std::int64_t at = 0; at < hidden; ++at) {
        const Value i = sigmoid(both(0, at)), o = sigmoid(both(1, at)), f = sigmoid(both(2, at)), g = tanh(both(3, at));
        c[size(at)] = plus(times(f, c[size(at)]), times(i, g));
        result.push_back(times(o, tanh(c[size(at)])));
      }
    } else {
      gru_step(of_x, of_h, h, both, result);
    }
    return result;
  }

  template <class Both>
  void gru_step(const Rounded& of_x, const Rounded& of_h, const std::vector<float>& h, const Both& both,
                std::vector<Value>& result) const {
    const std::int64_t hidden = net_.spec.hidden, width = net_.width();
    std::vector<Value> reset;
    for (std::int64_t at = 0; at < hidden; ++at) reset.push_back(sigmoid(both(1, at)));
    Rounded of_reset;
    std::vector<double> doubtful(h.size());  // how far a rounding may go either way: by 0 or 1
    if (!net_.spec.linear_before_reset) of_reset = rounded_product(reset, h, doubtful);
    for (std::int64_t at = 0; at < hidden; ++at) {
      const std::int64_t column = 2 * hidden + at;
      const Value of_input = product(of_x, net_.w, net_.w_scale, column);
      Value inner;
      if (net_.spec.linear_before_reset) {
        inner = times(reset[size(at)], plus(product(of_h, net_.r, net_.r_scale, column), bias(width + column)));
      } else {
        inner = plus(product(of_reset, net_.r, net_.r_scale, column), bias(width + column));
        const double step = of_reset.scale * static_cast<double>(net_.r_scale[size(column)]);
        for (std::size_t k = 0; k < doubtful.size(); ++k) {
          inner.error += doubtful[k] * std::abs(net_.r[k * size(width) + size(column)]) * step;
        }
      }
      const Value z = sigmoid(both(0, at)), n = tanh(plus(plus(of_input, bias(column)), inner));
      const Value state{static_cast<double>(h[size(at)]), 0};
      result.push_back(plus(n, times(z, plus(state, {-n.is, n.error}))));
    }
  }

  // r * h is not among the answers, so its float32 form is not known: near a tie its rounding may go either way.
  static Rounded rounded_product(const std::vector<Value>& reset, const std::vector<float>& h,
                                 std::vector<double>& doubtful) {
    double peak = 1.0;
    for (std::size_t at = 0; at < h.size(); ++at) peak = std::max(peak, std::fabs(reset[at].is * static_cast<double>(h[at])));
    Rounded result;
    result.scale = peak / 127.0;
    for (std::size_t at = 0; at < h.size(); ++at) {
      const double value = reset[at].is * static_cast<double>(h[at]) / result.scale;
      const double error = reset[at].error * std::fabs(static_cast<double>(h[at])) / result.scale + 127 * 1e-6;
      result.q.push_back(static_cast<std::int64_t>(std::nearbyint(value)));
      const double whole = std::floor(value);
      doubtful[at] = std::fabs(value - whole - 0.5) <= error ? 1.0 : 0.0;
    }
    return result;
  }

  const Net& net_;
  const Data& data_;
  const Answer& answer_;
  bool swapped_;
  double worst_ = 0;
};

}  // namespace check
