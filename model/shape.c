/*
 * The numbers of a backbone: checked against each other and against limits that no real model comes near, so that
 * every product of them fits a size_t; and the shapes of published models.
 */
#include "model/shape.h"

#include <math.h>
#include <string.h>

struct limit {
	const char *name;
	size_t value, least, most;
};

static int check_limits(const struct limit *limits, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		const struct limit *l = &limits[i];

		if (l->value < l->least || l->value > l->most)
			return error_set(err, ERR_FORMAT, "%s is %zu: expected %zu to %zu", l->name, l->value,
					 l->least, l->most);
	}
	return 0;
}

static int check_numbers(const struct shape *shape, struct error *err)
{
	if (!(shape->norm_epsilon > 0 && shape->norm_epsilon <= 1))
		return error_set(err, ERR_FORMAT, "layer_norm_epsilon is %g: expected more than 0, at most 1",
				 (double)shape->norm_epsilon);
	if (!(shape->dt_min >= 0 && isfinite(shape->dt_min) && shape->dt_max >= shape->dt_min))
		return error_set(err, ERR_FORMAT, "time_step_limit is [%g, %g]: expected 0 <= low <= high",
				 (double)shape->dt_min, (double)shape->dt_max);
	return 0;
}

int shape_derive(struct shape *shape, struct error *err)
{
	const struct limit limits[] = {
		{ "num_hidden_layers", shape->num_layers, 1, 4096 },
		{ "hidden_size", shape->hidden_size, 1, 1 << 17 },
		{ "expand * hidden_size", shape->d_inner, 1, 1 << 19 },
		{ "num_heads", shape->num_heads, 1, 1 << 16 },
		{ "head_dim", shape->head_dim, 1, 1 << 16 },
		{ "n_groups", shape->n_groups, 1, shape->num_heads },
		{ "state_size", shape->state_size, 1, 1 << 13 },
		{ "conv_kernel", shape->conv_kernel, 2, 64 },
		{ "vocab_size", shape->vocab_size, 0, 1 << 26 },
		{ "gated_norm_groups", shape->gated_norm_groups, 1, shape->d_inner },
	};
	int rc = check_limits(limits, sizeof limits / sizeof *limits, err);

	if (!rc)
		rc = check_numbers(shape, err);
	if (rc)
		return rc;
	if (shape->num_heads * shape->head_dim != shape->d_inner)
		return error_set(err, ERR_FORMAT, "num_heads * head_dim is %zu * %zu = %zu: "
				 "expected expand * hidden_size = %zu", shape->num_heads, shape->head_dim,
				 shape->num_heads * shape->head_dim, shape->d_inner);
	if (shape->num_heads % shape->n_groups)
		return error_set(err, ERR_FORMAT, "n_groups is %zu: expected a divisor of num_heads = %zu",
				 shape->n_groups, shape->num_heads);
	if (shape->d_inner % shape->gated_norm_groups)
		return error_set(err, ERR_FORMAT, "gated_norm_groups is %zu: expected a divisor of %zu",
				 shape->gated_norm_groups, shape->d_inner);
	shape->conv_dim = shape->d_inner + 2 * shape->n_groups * shape->state_size;
	shape->in_proj_rows = shape->d_inner + shape->conv_dim + shape->num_heads;
	return 0;
}

int shape_named(const char *name, struct shape *ret_shape, struct error *err)
{
	static const struct {
		const char *name;
		size_t num_layers, hidden_size, n_groups, vocab_size;
	} published[] = {
		{ "130m", 24, 768, 1, 50288 },
		{ "370m", 48, 1024, 1, 50288 },
		{ "780m", 48, 1536, 1, 50288 },
		{ "1.3b", 48, 2048, 1, 50288 },
		{ "2.7b", 64, 2560, 1, 50288 },
		{ "codestral-7b", 64, 4096, 8, 32768 },
	};

	for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
		if (strcmp(name, published[i].name))
			continue;
		*ret_shape = (struct shape){
			.num_layers = published[i].num_layers,
			.hidden_size = published[i].hidden_size,
			.d_inner = 2 * published[i].hidden_size,
			.num_heads = 2 * published[i].hidden_size / 64,
			.head_dim = 64,
			.n_groups = published[i].n_groups,
			.state_size = 128,
			.conv_kernel = 4,
			.vocab_size = published[i].vocab_size,
			.gated_norm_groups = published[i].n_groups,
			.norm_epsilon = 1e-5f,
			.dt_max = INFINITY,
		};
		return shape_derive(ret_shape, err);
	}
	return error_set(err, ERR_ARGUMENT,
			 "shape %s: expected 130m, 370m, 780m, 1.3b, 2.7b or codestral-7b", name);
}

size_t shape_conv_state_floats(const struct shape *shape)
{
	return shape->conv_dim * (shape->conv_kernel - 1);
}

size_t shape_ssm_state_floats(const struct shape *shape)
{
	return shape->num_heads * shape->head_dim * shape->state_size;
}

size_t shape_cache_floats(const struct shape *shape)
{
	return shape->num_layers * (shape_conv_state_floats(shape) + shape_ssm_state_floats(shape));
}
