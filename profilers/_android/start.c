/* Entry of a dynamically linked Android program: hands the kernel's argument block to libc, as the NDK's crtbegin does. */
#include "bionic.h"

int main(int, char **);
static void *const no_arrays[16]; /* no preinit, init or fini arrays, in every layout libc has had */

__attribute__((used, noreturn)) void dna_start(void *arguments) {
  __libc_init(arguments, 0, main, no_arrays);
}
__asm__(".globl _start\n_start:\n mov x29, #0\n mov x30, #0\n mov x0, sp\n b dna_start\n");
