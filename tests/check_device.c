/*
 * Finding devices by name, with made-up back ends in the place of the real ones: linked first, they are the ones that
 * the table in device.c refers to.
 */
#include <string.h>

#include "model/device.h"
#include "tests/suite.h"

static int cuda_rc, cpu_rc;     /* what opening returns */
static int opened_index, closed; /* what the back ends saw */
static struct device cuda_device, cpu_device;

static void record_close(struct device *device)
{
	ck_assert_ptr_eq(device, &cuda_device);
	closed++;
}

static int cuda_open(const struct model *model, const struct device_options *options, struct device **ret_device,
		     struct error *err)
{
	(void)model;
	opened_index = options->index;
	if (cuda_rc)
		return error_set(err, cuda_rc, "device cuda: none here");
	cuda_device.backend = &backend_cuda;
	*ret_device = &cuda_device;
	return 0;
}

static int cpu_open(const struct model *model, const struct device_options *options, struct device **ret_device,
		    struct error *err)
{
	(void)model;
	opened_index = options->index;
	if (cpu_rc)
		return error_set(err, cpu_rc, "device cpu: too old");
	*ret_device = &cpu_device;
	return 0;
}

const struct backend backend_cuda = { .name = "cuda", .open = cuda_open, .close = record_close };
const struct backend backend_cpu = { .name = "cpu", .open = cpu_open };

static struct device *opened(const char *name)
{
	struct device_options options = { .index = 77 };
	struct device *device = NULL;
	struct error err;

	ck_assert_int_eq(device_open(name, NULL, &options, &device, &err), 0);
	return device;
}

START_TEST(names_choose_the_back_end)
{
	ck_assert_ptr_eq(opened("cpu"), &cpu_device);
	ck_assert_int_eq(opened_index, 0);
	ck_assert_ptr_eq(opened("cuda"), &cuda_device);
	ck_assert_int_eq(opened_index, 0);
	ck_assert_ptr_eq(opened("cuda:0"), &cuda_device);
	ck_assert_int_eq(opened_index, 0);
	ck_assert_ptr_eq(opened("cuda:13"), &cuda_device);
	ck_assert_int_eq(opened_index, 13);
}
END_TEST

static const char *const unknown[] = {
	"", "gpu", "cud", "cudaa", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda: 1", "cuda:1x", "cuda:1:2", "cuda:99999",
	"cpu:0", "cpu:", ":0", "auto:1", "auto ",
};

START_TEST(unknown_names_are_refused)
{
	struct device_options options = { .index = 0 };
	struct device *device = NULL;
	struct error err;

	ck_assert_int_eq(device_open(unknown[_i], NULL, &options, &device, &err), ERR_ARGUMENT);
	ck_assert_msg(strstr(err.text, unknown[_i]) && strstr(err.text, "expected auto, cpu, cuda or cuda:N"), "%s",
		      err.text);
	ck_assert_ptr_null(device);
}
END_TEST

START_TEST(auto_takes_the_first_that_opens)
{
	struct device_options options = { .index = 5 };
	struct device *device = NULL;
	struct error err;

	cuda_rc = cpu_rc = 0;
	ck_assert_int_eq(device_open("auto", NULL, &options, &device, &err), 0);
	ck_assert_ptr_eq(device, &cuda_device);
	ck_assert_int_eq(opened_index, 0);
	ck_assert_str_eq(err.text, "");
	cuda_rc = ERR_MEMORY;
	ck_assert_int_eq(device_open("auto", NULL, &options, &device, &err), 0);
	ck_assert_ptr_eq(device, &cpu_device);
	ck_assert_str_eq(err.text, "device cuda: none here");
	cpu_rc = ERR_UNSUPPORTED;
	ck_assert_int_eq(device_open("auto", NULL, &options, &device, &err), ERR_UNSUPPORTED);
	ck_assert_str_eq(err.text,
			 "no device can serve the model: device cuda: none here; device cpu: too old");
	ck_assert_int_eq(device_open("cuda", NULL, &options, &device, &err), ERR_MEMORY);
	ck_assert_str_eq(err.text, "device cuda: none here");
}
END_TEST

START_TEST(close_goes_to_the_back_end)
{
	cuda_rc = 0;
	device_close(opened("cuda"));
	ck_assert_int_eq(closed, 1);
	device_close(NULL);
	ck_assert_int_eq(closed, 1);
}
END_TEST

START_TEST(precisions_have_names)
{
	static const char *const names[] = { "auto", "float32", "bfloat16" };
	enum precision precision;

	for (int i = 0; i < 3; i++) {
		ck_assert(precision_find(names[i], &precision) && precision == (enum precision)i);
		ck_assert_str_eq(precision_name(precision), names[i]);
	}
	ck_assert(!precision_find("float16", &precision));
	ck_assert(!precision_find("", &precision));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("device");
	TCase *find = tcase_create("find");

	tcase_add_test(find, names_choose_the_back_end);
	tcase_add_loop_test(find, unknown_names_are_refused, 0, sizeof unknown / sizeof *unknown);
	tcase_add_test(find, auto_takes_the_first_that_opens);
	tcase_add_test(find, close_goes_to_the_back_end);
	tcase_add_test(find, precisions_have_names);
	suite_add_tcase(suite, find);
	return suite_run(suite);
}
