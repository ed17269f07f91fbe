// Stands before the compiler's cpuid.h, as immintrin.h here: a CPU that has AVX-VNNI.
#pragma once

inline int __get_cpuid_count(unsigned, unsigned, unsigned* eax, unsigned* ebx, unsigned* ecx, unsigned* edx) {
  *eax = 1U << 4;
  *ebx = *ecx = *edx = 0;
  return 1;
}
