// Matrices of int8 weights, packed for an ``Isa``, and their products with rows of 8-bit activations.
#pragma once

#include <algorithm>

#include "numbers.hpp"

namespace deploykit {
namespace {

constexpr std::int64_t depth = 4;  // products that one Isa::dot sums in a lane

inline std::int64_t ceil_div(std::int64_t value, std::int64_t by) { return (value + by - 1) / by; }

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

// From a source of ``rows`` by ``stride`` columns, the ``gates`` times ``hidden`` ones from column ``first`` on.
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

// ``Rows`` rows from ``row`` on by ``Wide`` vectors of units from ``unit + at`` on, of the block of ``Width`` vectors
// that starts at ``unit``.
template <int Gates, int Wide, int Width, int Rows, class Isa, class Use>
INLINE void tile(const Matrix<Isa>& matrix, int at_unit, const std::uint8_t* all_rows, std::int64_t stride,
                 std::int64_t row, std::int64_t unit, const Use& use) {
  using I = typename Isa::I;
  constexpr std::int64_t lanes = Isa::lanes;
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
  if constexpr (all < 8) {  // with more sums registers run out
    for (; quad + 2 <= quads; quad += 2, weights += 2 * next, rows += 2 * depth) {
      add(0);
      add(1);
    }
  }
  for (; quad < quads; ++quad, weights += next, rows += depth) add(0);
  I sums[all];
#pragma GCC unroll 32
  for (int at = 0; at < all; ++at) sums[at] = sum[at];
#pragma GCC unroll 8
  for (int one = 0; one < Rows; ++one) {
#pragma GCC unroll 8
    for (int at = 0; at < Wide; ++at) use(row + one, unit + at, sums + one * width_here + at * Gates);
  }
}

// All rows by a block of ``Wide`` vectors of units.
template <int Gates, int Wide, class Isa, class Use>
INLINE void block(const Matrix<Isa>& matrix, const std::uint8_t* rows, std::int64_t stride, std::int64_t count,
                  std::int64_t unit, const Use& use) {
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
  for (; row < count; ++row) tile<Gates, Wide, width, 1>(matrix, 0, rows, stride, row, unit, use);
}

// Calls ``use(row, unit, sums)`` for every row and vector of units from ``first`` to ``last``, with the sums of the
// unit's gates. Few rows run through wide blocks, so that a load of the activations serves many weights; more rows
// share the weights. ``use`` should hold copies: what it refers to would be read again after every number it stores.
template <int Gates, class Isa, class Use>
void multiply(const Matrix<Isa>& matrix, const std::uint8_t* rows, std::int64_t stride, std::int64_t count,
              std::int64_t first, std::int64_t last, Use use) {
  constexpr int wide = std::max(1, Isa::most_vectors / Gates);
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

// Multiply-accumulates of one product that are worth waking other threads, and of each one's share; shares at most.
constexpr std::int64_t least_shared = 2 << 20, least_share = 1 << 19, most_shares = 16;

// Calls ``part`` for the units of a matrix, in shares for several threads where ``rows`` are enough work for that.
template <class Isa, class Part>
void shared(const Matrix<Isa>& matrix, std::int64_t rows, Pool& pool, Part&& part) {
  const std::int64_t blocks = matrix.units / matrix.wide;
  const std::int64_t work = rows * static_cast<std::int64_t>(matrix.weights.size());
  const std::int64_t shares = std::min({work / least_share, blocks, most_shares});
  if (work < least_shared || shares < 2) {
    part(std::int64_t{0}, matrix.units);
    return;
  }
  pool.each(static_cast<std::size_t>(shares), [&](std::size_t index) {
    const auto start = [&](std::int64_t share) {
      return share == shares ? matrix.units : blocks * share / shares * matrix.wide;
    };
    part(start(static_cast<std::int64_t>(index)), start(static_cast<std::int64_t>(index) + 1));
  });
}

}  // namespace
}  // namespace deploykit
