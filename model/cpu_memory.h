/* Big blocks of memory, aligned for vectors and in huge pages where the system has them. */
#ifndef MODEL_CPU_MEMORY_H
#define MODEL_CPU_MEMORY_H

#include <stddef.h>

/* Not initialised; NULL if there is none.  Free with free. */
void *cpu_memory_new(size_t bytes);

/* Zeroed. */
void *cpu_memory_zeroed(size_t bytes);

#endif
