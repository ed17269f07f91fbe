// Which path runs: the fastest that this CPU has, or the one that was asked for.
#include <cstring>

#include "layer.hpp"

namespace deploykit {

// The build defines DEPLOYKIT_WITH_ and its name for each path that the compiler could make.
extern const Path avx512vnni_path, avxvnni_path, avx2_path, neon_path, plain_path;

const Path* paths(std::size_t& count) {
  static const Path all[] = {
#ifdef DEPLOYKIT_WITH_AVX512VNNI
      avx512vnni_path,
#endif
#ifdef DEPLOYKIT_WITH_AVXVNNI
      avxvnni_path,
#endif
#ifdef DEPLOYKIT_WITH_AVX2
      avx2_path,
#endif
#ifdef DEPLOYKIT_WITH_NEON
      neon_path,
#endif
      plain_path,
  };
  count = sizeof all / sizeof *all;
  return all;
}

const Path* choose(const char* name) {
  std::size_t count;
  const Path* all = paths(count);
  for (std::size_t at = 0; at < count; ++at) {
    const bool wanted = name == nullptr || *name == '\0' || std::strcmp(name, all[at].name) == 0;
    if (wanted && all[at].runs_here()) return all + at;
  }
  return nullptr;
}

void* allocate(std::size_t bytes, std::size_t zeroed) {
  void* memory = ::operator new(bytes > 0 ? bytes : 1, std::align_val_t(alignment));
  std::memset(memory, 0, zeroed);
  return memory;
}

}  // namespace deploykit
