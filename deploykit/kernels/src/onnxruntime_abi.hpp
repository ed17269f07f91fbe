// The part of onnxruntime's C interface that is used here, declared by place.
//
// onnxruntime only ever appends to its tables, so that an entry's place in them never changes; the headers are in no
// package that could be built against. What is here is there from version 1.16 on (API version 16).
#pragma once

#include <cstddef>
#include <cstdint>

namespace deploykit::ort {

constexpr std::uint32_t api_version = 16;

struct Status;
struct Value;
struct ShapeInfo;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct CustomOpDomain;
struct ShapeInferContext;

enum ErrorCode : int { fail = 1, invalid_argument = 2 };
enum ElementType : int { type_float = 1, type_int8 = 3, type_int32 = 6 };
enum Characteristic : int { required = 0, optional = 1, variadic = 2 };

// OrtApi: a table of functions.
class Api {
 public:
  Status* create_status(ErrorCode code, const char* message) const {
    return at<Status*(ErrorCode, const char*)>(0)(code, message);
  }
  Status* create_domain(const char* name, CustomOpDomain** domain) const {
    return at<Status*(const char*, CustomOpDomain**)>(26)(name, domain);
  }
  Status* add_operator(CustomOpDomain* domain, const struct CustomOp* op) const {
    return at<Status*(CustomOpDomain*, const struct CustomOp*)>(27)(domain, op);
  }
  Status* add_domain(SessionOptions* options, CustomOpDomain* domain) const {
    return at<Status*(SessionOptions*, CustomOpDomain*)>(28)(options, domain);
  }
  Status* data(Value* value, void** data) const { return at<Status*(Value*, void**)>(51)(value, data); }
  Status* rank(const ShapeInfo* info, std::size_t* rank) const {
    return at<Status*(const ShapeInfo*, std::size_t*)>(61)(info, rank);
  }
  Status* dims(const ShapeInfo* info, std::int64_t* dims, std::size_t rank) const {
    return at<Status*(const ShapeInfo*, std::int64_t*, std::size_t)>(62)(info, dims, rank);
  }
  Status* shape(const Value* value, ShapeInfo** info) const {
    return at<Status*(const Value*, ShapeInfo**)>(65)(value, info);
  }
  Status* attribute(const KernelInfo* info, const char* name, std::int64_t* value) const {
    return at<Status*(const KernelInfo*, const char*, std::int64_t*)>(86)(info, name, value);
  }
  // ``size`` is that of ``value``, with the zero at its end.
  Status* attribute(const KernelInfo* info, const char* name, char* value, std::size_t* size) const {
    return at<Status*(const KernelInfo*, const char*, char*, std::size_t*)>(87)(info, name, value, size);
  }
  Status* input(const KernelContext* context, std::size_t index, const Value** value) const {
    return at<Status*(const KernelContext*, std::size_t, const Value**)>(90)(context, index, value);
  }
  Status* output(KernelContext* context, std::size_t index, const std::int64_t* dims, std::size_t rank,
                 Value** value) const {
    return at<Status*(KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**)>(91)(context, index, dims,
                                                                                                   rank, value);
  }
  void release(Status* status) const { at<void(Status*)>(93)(status); }
  void release(ShapeInfo* info) const { at<void(ShapeInfo*)>(99)(info); }
  Status* input_count(const KernelInfo* info, std::size_t* count) const {
    return at<Status*(const KernelInfo*, std::size_t*)>(230)(info, count);
  }
  Status* input_name(const KernelInfo* info, std::size_t index, char* name, std::size_t* size) const {
    return at<Status*(const KernelInfo*, std::size_t, char*, std::size_t*)>(232)(info, index, name, size);
  }
  Status* output_count(const KernelInfo* info, std::size_t* count) const {
    return at<Status*(const KernelInfo*, std::size_t*)>(231)(info, count);
  }
  // ``value`` belongs to the session.
  Status* constant(const KernelInfo* info, std::size_t index, int* is_constant, const Value** value) const {
    return at<Status*(const KernelInfo*, std::size_t, int*, const Value**)>(249)(info, index, is_constant, value);
  }
  // Runs task(data, 0) to task(data, total - 1) on the session's threads, in as many batches as there are threads.
  Status* parallel(const KernelContext* context, void (*task)(void*, std::size_t), std::size_t total, void* data) const {
    using Task = void (*)(void*, std::size_t);
    return at<Status*(const KernelContext*, Task, std::size_t, std::size_t, void*)>(274)(context, task, total, 0, data);
  }

 private:
  template <class Signature>
  Signature* at(std::size_t place) const {
    return reinterpret_cast<Signature*>(reinterpret_cast<void* const*>(this)[place]);
  }
};

struct ApiBase {
  const Api* (*get_api)(std::uint32_t version);
  const char* (*version_string)();
};

// OrtCustomOp as of API version 16.
struct CustomOp {
  std::uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, std::size_t);
  std::size_t (*input_type_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, std::size_t);
  std::size_t (*output_type_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  Characteristic (*input_characteristic)(const CustomOp*, std::size_t);
  Characteristic (*output_characteristic)(const CustomOp*, std::size_t);
  int (*input_memory)(const CustomOp*, std::size_t);
  int (*variadic_input_least)(const CustomOp*);
  int (*variadic_input_alike)(const CustomOp*);
  int (*variadic_output_least)(const CustomOp*);
  int (*variadic_output_alike)(const CustomOp*);
  Status* (*create_kernel_status)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_status)(void*, KernelContext*);
};

}  // namespace deploykit::ort
