/* Dividing a matrix product: by panels of weights, and by rows as well where there are too few panels. */
#include "model/cpu_multiply.h"

#define TASKS_PER_THREAD 4 /* at least, so that no thread waits long for another */
#define ROWS_PER_TASK 8    /* at least */

struct work {
	const struct cpu_product *product;
	const struct cpu_kernels *kernels;
	size_t rows, blocks, rows_per_block;
};

static void multiply_panel(void *arg, size_t task, size_t thread)
{
	const struct work *work = arg;
	const size_t first = task % work->blocks * work->rows_per_block;
	const size_t left = work->rows - first;

	(void)thread;
	work->kernels->product(work->product, task / work->blocks, first,
			       left < work->rows_per_block ? left : work->rows_per_block);
}

static size_t divide_up(size_t n, size_t by)
{
	return (n + by - 1) / by;
}

void cpu_multiply(const struct cpu_kernels *kernels, struct cpu_threads *threads, const struct cpu_product *product,
		  size_t rows)
{
	const size_t panels = divide_up(product->columns, kernels->panel);
	const size_t blocks = divide_up(TASKS_PER_THREAD * cpu_threads_count(threads), panels);
	struct work work = {
		.product = product,
		.kernels = kernels,
		.rows = rows,
		.rows_per_block = divide_up(divide_up(rows, blocks), ROWS_PER_TASK) * ROWS_PER_TASK,
	};

	work.blocks = divide_up(rows, work.rows_per_block);
	cpu_threads_run(threads, multiply_panel, &work, panels * work.blocks);
}
