// Holds every path of this build that runs here against reference.hpp, and against itself: bit for bit the same whatever
// a row's neighbours, what follows, where memory lies and how many threads there are. No onnxruntime is needed, so that
// this runs under an emulator of another CPU, and under sanitizers.
//
//   check [--layers N] [--seed N] [--path NAME] [--only reference|rows|threads|extremes|swapped]
//
// ``swapped``: the reference has two gates exchanged, and has to notice.
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "layers.hpp"
#include "reference.hpp"

namespace check {
namespace {

using deploykit::Direction;
using deploykit::Path;
using deploykit::Serial;

constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::int64_t units[] = {1, 3, 8, 17, 64, 130};
constexpr std::int64_t batches[] = {1, 2, 5, 9, 17};
constexpr std::int64_t lengths[] = {0, 1, 2, 7, 33};

// ---- against the reference

double against_reference(const Path& path, Random& random, std::int64_t variant) {
  const Net net = random_net(random, variant, random.of(units), units[variant % 6]);
  const Data data = random_data(random, net, random.of(batches), random.of(lengths));
  Serial serial;
  const Answer answer = run(*packed(path, net), net, data, serial);
  try {
    return Reference(net, data, answer, false).worst();
  } catch (const Failure& failure) {
    throw Failure(told(net, data) + ": " + failure.what());
  }
}

// What a wrong implementation of each kind looks like to the reference.
void wrong_reference(const Path& path, Random& random, std::int64_t variant) {
  const Net net = random_net(random, variant, 3, 5);
  const Data data = random_data(random, net, 20, 2);
  Serial serial;
  const Answer answer = run(*packed(path, net), net, data, serial);
  bool noticed = false;
  try {
    Reference(net, data, answer, true).worst();
  } catch (const Failure&) {
    noticed = true;
  }
  expect(noticed, told(net, data) + ": two gates were exchanged, and nobody noticed");
}

// A ReLU RNN with scales of 1 and a bias that keeps sums above 0 answers the integer sums themselves.
void exact_integers(const Path& path, Random& random, std::int64_t rows, std::int64_t hidden, bool extreme) {
  constexpr float offset = 1 << 21;
  Net net;
  net.spec = {Kind::rnn, rows, hidden, true, true, false};
  net.w = random_weights(random, rows, hidden, false);
  net.r = random_weights(random, hidden, hidden, false);
  net.w_scale = net.r_scale = std::vector<float>(size(hidden), 1.0F);
  net.bias.assign(size(2 * hidden), 0.0F);
  std::fill_n(net.bias.begin(), hidden, offset);
  Data data;
  data.steps = 1;
  data.batch = 3;
  for (std::int64_t at = 0; at < data.batch * rows; ++at) data.x.push_back(static_cast<float>(random.below(255) - 127));
  for (std::int64_t at = 0; at < data.batch * hidden; ++at) data.h.push_back(static_cast<float>(random.below(255) - 127));
  if (extreme) {  // all of the largest magnitude: what would saturate 16 bits
    for (auto* matrix : {&net.w, &net.r}) {
      for (std::size_t at = 0; at < matrix->size(); ++at) (*matrix)[at] = at % size(hidden) % 2 == 0 ? 127 : -127;
    }
    for (auto* values : {&data.x, &data.h}) std::fill(values->begin(), values->end(), random.coin() ? 127.0F : -127.0F);
  }
  for (std::int64_t row = 0; row < data.batch; ++row) {  // the scale of a row is 1
    data.x[size(row * rows)] = data.h[size(row * hidden)] = extreme ? data.x[size(row * rows)] : 127.0F;
  }
  for (const bool of_state : {false, true}) {
    Data one = data;
    if (of_state) std::fill(one.x.begin(), one.x.end(), 0.0F);
    else one.h.clear();
    if (extreme && of_state) std::fill(one.h.begin(), one.h.end(), one.h[0]);
    Serial serial;
    const Answer answer = run(*packed(path, net), net, one, serial);
    const auto& values = of_state ? one.h : one.x;
    const auto& weights = of_state ? net.r : net.w;
    const std::int64_t depth = of_state ? hidden : rows;
    for (std::int64_t row = 0; row < one.batch; ++row) {
      for (std::int64_t unit = 0; unit < hidden; ++unit) {
        std::int64_t sum = 0;
        for (std::int64_t at = 0; at < depth; ++at) {
          sum += static_cast<std::int64_t>(values[size(row * depth + at)]) * weights[size(at * hidden + unit)];
        }
        // Up to 2^22 float32 has steps of 1/4 or less; a scale of 127/127 may be off in its last bit.
        const float found = answer.y[size(row * hidden + unit)] - offset;
        expect(std::fabs(found - static_cast<float>(sum)) < 0.6F,
               std::string(of_state ? "state" : "input") + " product of " + std::to_string(depth) + " x " +
                   std::to_string(hidden) + " is " + std::to_string(found) + ", not " + std::to_string(sum));
      }
    }
  }
}

// ---- rows, steps, memory

Data one_row(const Net& net, const Data& data, std::int64_t row) {
  Data one;
  one.steps = data.steps;
  one.batch = 1;
  const auto take = [](std::vector<float>& to, const std::vector<float>& from, std::int64_t at, std::int64_t count) {
    const auto begin = from.begin() + static_cast<std::ptrdiff_t>(at * count);
    if (!from.empty()) to.insert(to.end(), begin, begin + static_cast<std::ptrdiff_t>(count));
  };
  for (std::int64_t step = 0; step < data.steps; ++step) take(one.x, data.x, step * data.batch + row, net.spec.input);
  if (!data.lengths.empty()) one.lengths = {data.lengths[size(row)]};
  take(one.h, data.h, row, net.spec.hidden);
  take(one.c, data.c, row, net.spec.hidden);
  return one;
}

Answer one_row(const Net& net, const Data& data, const Answer& answer, std::int64_t row) {
  Data as_inputs = data;  // an answer is laid out as inputs are
  Net wide = net;
  wide.spec.input = net.spec.hidden;
  as_inputs.x = answer.y;
  as_inputs.h = answer.h;
  as_inputs.c = answer.c;
  const Data one = one_row(wide, as_inputs, row);
  return {one.x, one.h, one.c};
}

// Each row's steps backwards, within its length.
std::vector<float> backwards(const Data& data, const std::vector<float>& from, std::int64_t width) {
  std::vector<float> to = from;
  for (std::int64_t row = 0; row < data.batch; ++row) {
    for (std::int64_t step = 0; step < data.length(row); ++step) {
      const std::int64_t other = data.length(row) - 1 - step;
      std::copy_n(from.begin() + static_cast<std::ptrdiff_t>((step * data.batch + row) * width), width,
                  to.begin() + static_cast<std::ptrdiff_t>((other * data.batch + row) * width));
    }
  }
  return to;
}

void rows_and_steps(const Path& path, Random& random, std::int64_t variant) {
  const Net net = random_net(random, variant, random.of(units), units[variant % 6]);
  const Data data = random_data(random, net, random.of(batches), random.of(lengths));
  const auto direction = packed(path, net);
  Serial serial;
  const Answer whole = run(*direction, net, data, serial);
  const std::string what = told(net, data) + ": ";
  for (std::int64_t row = 0; row < data.batch; ++row) {
    const Answer alone = run(*direction, net, one_row(net, data, row), serial);
    expect(same(alone, one_row(net, data, whole, row)), what + "a row alone differs from itself in a batch");
  }
  if (!net.spec.reverse) {
    Data prefix = data;
    prefix.steps = random.below(data.steps + 1);
    prefix.x.resize(size(prefix.steps * data.batch * net.spec.input));
    for (auto& length : prefix.lengths) length = std::min(length, static_cast<std::int32_t>(prefix.steps));
    Answer cut = whole;
    cut.y.resize(size(prefix.steps * data.batch * net.spec.hidden));
    expect(same(run(*direction, net, prefix, serial).y, cut.y), what + "the first steps depend on what follows");
  }
  Net other = net;
  other.spec.reverse = !net.spec.reverse;
  Data flipped = data;
  flipped.x = backwards(data, data.x, net.spec.input);
  Answer back = run(*packed(path, other), other, flipped, serial);
  back.y = backwards(data, back.y, net.spec.hidden);
  expect(same(back, whole), what + "the reverse direction is not the forward one of reversed steps");
  for (const std::size_t shift : {1U, 3U}) {
    const auto shifted = packed(path, net, shift);
    expect(same(run(*shifted, net, data, serial, {shift}), whole), what + "where memory lies changes the answer");
  }
  Answer part = whole;
  part.y.clear();
  expect(same(run(*direction, net, data, serial, {0, false, false, true}), part), what + "without y the answer differs");
  part = whole;
  part.h.clear();
  part.c.clear();
  expect(same(run(*direction, net, data, serial, {0, false, true, false}), part), what + "without finals it differs");
}

// ---- threads

// Large enough that the columns of one step are shared out.
void shared_columns(const Path& path, Random& random) {
  constexpr std::int64_t hidden[] = {840, 1030, 730, 1450, 1450};  // of the variants of random_net
  for (std::int64_t variant = 0; variant < 5; ++variant) {
    const Net net = random_net(random, variant, 40, hidden[variant]);
    const auto direction = packed(path, net);
    const Data data = random_data(random, net, 2, 2);
    Serial serial;
    Threads threads;
    expect(same(run(*direction, net, data, serial), run(*direction, net, data, threads)),
           told(net, data) + ": sharing out the columns changes the answer");
    expect(data.length(0) + data.length(1) == 0 || threads.shared > 0, "nothing was shared: make the layers larger");
  }
}

// One packed layer, run by several threads at once, and its groups of rows at once.
void one_for_all(const Path& path, Random& random, std::int64_t variant) {
  const Net net = random_net(random, variant, 17, 33);
  const auto direction = packed(path, net);
  std::vector<Data> data;
  std::vector<Answer> alone(4), together(4);
  Serial serial;
  for (std::size_t at = 0; at < alone.size(); ++at) {
    data.push_back(random_data(random, net, 19, 9));
    alone[at] = run(*direction, net, data[at], serial);
  }
  Threads().each(alone.size(), [&](std::size_t at) {
    Serial own;
    together[at] = run(*direction, net, data[at], own, {0, at % 2 == 0, true, true});
  });
  for (std::size_t at = 0; at < alone.size(); ++at) {
    expect(same(alone[at], together[at]), told(net, data[at]) + ": runs at once change each other's answers");
  }
}

// ---- what is far from ordinary

bool all_nan(const float* from, std::int64_t count) {
  return std::all_of(from, from + count, [](float value) { return std::isnan(value); });
}

// A NaN or Inf makes its row NaN from its step on, and touches nothing else.
void not_a_number(const Path& path, Random& random, std::int64_t variant, float poison) {
  const Net net = random_net(random, variant, 17, units[variant % 6]);
  const std::int64_t batch = 9, steps = 7, hidden = net.spec.hidden, row = random.below(batch), step = random.below(steps);
  Data data = random_data(random, net, batch, steps);
  data.lengths.clear();
  const auto direction = packed(path, net);
  Serial serial;
  const Answer sound = run(*direction, net, data, serial);
  const std::string what = told(net, data) + ": ";
  for (const int where : {0, 1, 2}) {  // in x, h or c
    Data bad = data;
    auto& values = where == 0 ? bad.x : where == 1 ? bad.h : bad.c;
    if (values.empty()) continue;
    const std::int64_t width = where == 0 ? net.spec.input : hidden;
    values[size(((where == 0 ? step * batch : 0) + row) * width + random.below(width))] = poison;
    const Answer answer = run(*direction, net, bad, serial);
    for (std::int64_t one = 0; one < batch; ++one) {
      if (one != row) {
        expect(same(one_row(net, data, answer, one), one_row(net, data, sound, one)), what + "a NaN reached another row");
        continue;
      }
      for (std::int64_t now = 0; now < steps; ++now) {
        const bool reached = where > 0 || (net.spec.reverse ? now <= step : now >= step);
        const std::int64_t at = (now * batch + one) * hidden;
        if (reached) expect(all_nan(answer.y.data() + at, hidden), what + "a NaN was lost");
        else expect(std::memcmp(answer.y.data() + at, sound.y.data() + at, size(hidden) * sizeof(float)) == 0,
                    what + "a NaN reached an earlier step");
      }
      expect(all_nan(answer.h.data() + one * hidden, hidden), what + "a NaN is not in the final state");
      if (!answer.c.empty()) expect(all_nan(answer.c.data() + one * hidden, hidden), what + "nor in the final cell");
    }
  }
}

// Magnitudes from nothing to nearly too much: nothing but a ReLU grows beyond what it should.
void magnitudes(const Path& path, Random& random, std::int64_t variant) {
  const Net net = random_net(random, variant, 17, units[variant % 6]);
  Data data = random_data(random, net, 5, 7);
  for (std::size_t at = 0; at < data.x.size(); ++at) {
    constexpr float by[] = {0.0F, 1e-45F, 1e-38F, 1e-30F, 1e30F, 3e38F};
    data.x[at] = (random.coin() ? 1.0F : -1.0F) * by[at / 17 % 6];
  }
  for (float& value : data.h) value = net.spec.relu ? 0.0F : value * 1e3F;
  Serial serial;
  const Answer answer = run(*packed(path, net), net, data, serial);
  for (std::int64_t row = 0; row < data.batch && !net.spec.relu; ++row) {
    const Answer one = one_row(net, data, answer, row);
    for (float value : one.y) {
      expect(std::fabs(value) <= (data.h.empty() ? 1.000001F : 3e3F), told(net, data) + ": y is " + std::to_string(value));
    }
  }
}

void nothing_at_all(const Path& path, Random& random) {
  for (std::int64_t variant = 0; variant < 10; ++variant) {
    const Net net = random_net(random, variant, 3, 17);
    const auto direction = packed(path, net);
    Serial serial;
    Data no_steps = random_data(random, net, 2, 0);
    for (float value : run(*direction, net, no_steps, serial).h) expect(value == 0.0F, "a state after no step is not 0");
    Data no_rows;
    no_rows.steps = 4;
    expect(run(*direction, net, no_rows, serial).y.empty(), "no rows have an answer");
  }
}

struct Options {
  std::int64_t layers = 300;
  std::uint64_t seed = 1;
  std::string path, only;
};

void check_path(const Path& path, const Options& options) {
  Random random(options.seed);
  const auto wanted = [&](const char* part) { return options.only.empty() || options.only == part; };
  double worst = 0;
  if (wanted("reference")) {
    for (std::int64_t at = 0; at < options.layers; ++at) {
      worst = std::max(worst, against_reference(path, random, at));
    }
    for (const std::int64_t rows : {1, 3, 8, 17, 64, 130}) {
      for (const std::int64_t hidden : units) {
        for (const bool extreme : {false, true}) exact_integers(path, random, rows, hidden, extreme);
      }
    }
  }
  if (wanted("swapped")) {
    for (std::int64_t variant = 0; variant < 10; ++variant) wrong_reference(path, random, variant);
  }
  if (wanted("rows")) {
    for (std::int64_t at = 0; at < options.layers / 4; ++at) rows_and_steps(path, random, at);
  }
  if (wanted("threads")) {
    for (std::int64_t variant = 0; variant < 10; ++variant) one_for_all(path, random, variant);
    shared_columns(path, random);
  }
  if (wanted("extremes")) {
    for (std::int64_t at = 0; at < options.layers / 4; ++at) {
      not_a_number(path, random, at, at / 5 % 3 == 0 ? nan : at / 5 % 3 == 1 ? infinity : -infinity);
      magnitudes(path, random, at);
    }
    nothing_at_all(path, random);
  }
  std::printf("%s: sound, the largest error %.2f of what is allowed\n", path.name, worst);
}

int main_of(const Options& options) {
  std::size_t count = 0;
  const Path* all = deploykit::paths(count);
  int checked = 0;
  for (std::size_t at = 0; at < count; ++at) {
    if (!options.path.empty() && options.path != all[at].name) continue;
    if (!all[at].runs_here()) {
      std::printf("%s: does not run here\n", all[at].name);
      continue;
    }
    try {
      check_path(all[at], options);
      ++checked;
    } catch (const Failure& failure) {
      std::printf("%s: WRONG: %s\n", all[at].name, failure.what());
      return 1;
    }
  }
  std::printf("chosen: %s\n", deploykit::choose(nullptr)->name);
  return checked > 0 ? 0 : 2;
}

}  // namespace
}  // namespace check

int main(int count, char** values) {
  check::Options options;
  for (int at = 1; at < count; ++at) {
    const std::string name = values[at];
    if (at + 1 == count) return 2;
    const char* value = values[++at];
    if (name == "--layers") options.layers = std::atoll(value);
    else if (name == "--seed") options.seed = static_cast<std::uint64_t>(std::atoll(value));
    else if (name == "--path") options.path = value;
    else if (name == "--only") options.only = value;
    else return 2;
  }
  return check::main_of(options);
}
