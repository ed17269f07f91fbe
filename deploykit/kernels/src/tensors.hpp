// What is read from onnxruntime: tensors of an expected shape, attributes, and what it says where that fails.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_abi.hpp"

namespace deploykit {
namespace {

using ort::Api;

// What onnxruntime said, to be handed on to it.
struct Refused {
  ort::Status* status;
};

void check(ort::Status* status) {
  if (status) throw Refused{status};
}

struct Wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr std::size_t most_dims = 4;

// Sizes of a tensor; -1 among expected ones stands for any.
struct Dims {
  std::array<std::int64_t, most_dims> at{};
  std::size_t rank = 0;
  Dims(std::initializer_list<std::int64_t> sizes) : rank(sizes.size()) { std::copy(sizes.begin(), sizes.end(), at.begin()); }
};

std::string told(const std::int64_t* dims, std::size_t rank) {
  std::string text = "[";
  for (std::size_t at = 0; at < rank; ++at) text += (at ? ", " : "") + (dims[at] < 0 ? "any" : std::to_string(dims[at]));
  return text + "]";
}

// A tensor of the expected shape.
struct Tensor {
  const void* data = nullptr;
  Dims dims{};
  bool there = false;
  explicit operator bool() const { return there; }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

Tensor read(const Api& api, const ort::Value* value, const Dims& expected, const char* name) {
  Tensor tensor;
  ort::ShapeInfo* info = nullptr;
  check(api.shape(value, &info));
  struct Release {
    const Api& api;
    ort::ShapeInfo* info;
    ~Release() { api.release(info); }
  } release{api, info};
  std::size_t rank = 0;
  check(api.rank(info, &rank));
  bool fits = rank == expected.rank;
  if (fits) check(api.dims(info, tensor.dims.at.data(), rank));
  tensor.dims.rank = rank;
  for (std::size_t at = 0; fits && at < rank; ++at) fits = expected.at[at] < 0 || expected.at[at] == tensor.dims.at[at];
  if (!fits) {
    std::vector<std::int64_t> found(rank);
    check(api.dims(info, found.data(), rank));
    throw Wrong(std::string(name) + " has the shape " + told(found.data(), rank) + ", not " +
                told(expected.at.data(), expected.rank));
  }
  void* data = nullptr;
  check(api.data(const_cast<ort::Value*>(value), &data));
  tensor.data = data;
  tensor.there = true;
  return tensor;
}

std::string text_attribute(const Api& api, const ort::KernelInfo* info, const char* name, const char* otherwise) {
  std::size_t size = 0;
  if (ort::Status* status = api.attribute(info, name, static_cast<char*>(nullptr), &size)) {
    api.release(status);
    return otherwise;
  }
  std::string value(size, '\0');
  check(api.attribute(info, name, value.data(), &size));
  value.resize(size > 0 ? size - 1 : 0);
  return value;
}

std::int64_t int_attribute(const Api& api, const ort::KernelInfo* info, const char* name, std::int64_t otherwise) {
  std::int64_t value = 0;
  ort::Status* status = api.attribute(info, name, &value);
  if (!status) return value;
  api.release(status);
  return otherwise;
}

}  // namespace
}  // namespace deploykit
