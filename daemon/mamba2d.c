/*
 * mamba2d: reads options and configuration, opens the server, serves, takes it down.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "daemon/config.h"
#include "daemon/server.h"

static const char usage[] =
	"Usage: mamba2d [OPTION]...\n"
	"Encode embedding streams with a Mamba-2 backbone whose cache persists across windows.\n"
	"\n"
	"  -c FILE             read this configuration\n"
	"  -s KEY=VALUE        set one key, over the file; VALUE is YAML\n"
	"      --check         check the configuration and the checkpoint, and exit\n"
	"      --print-config  print the configuration in force, every key explained, and exit\n"
	"      --version       print the version, and exit\n"
	"      --help          print this, and exit\n"
	"\n"
	"Examples:\n"
	"  mamba2d -s model=/srv/mamba2-130m\n"
	"  mamba2d -c /etc/mamba2d.yaml -s window=64 -s 'sockets.ingest=[\"tcp://[::1]:5701\", \"ipc:///run/in\"]'\n";

enum mode { MODE_RUN, MODE_CHECK, MODE_PRINT, MODE_LEAVE };

/* Read the command line; what is printed at once is printed here. */
static int read_options(int argc, char **argv, struct config_source *source, enum mode *ret_mode, struct error *err)
{
	static const struct option options[] = {
		{ "check", no_argument, NULL, 'C' }, { "print-config", no_argument, NULL, 'P' },
		{ "version", no_argument, NULL, 'V' }, { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 }
	};
	int option, rc = 0;

	*ret_mode = MODE_RUN;
	while (!rc && (option = getopt_long(argc, argv, "c:s:h", options, NULL)) != -1) {
		switch (option) {
		case 'c':
			rc = string_list_add(&source->files, optarg, err);
			break;
		case 's':
			rc = string_list_add(&source->overrides, optarg, err);
			break;
		case 'C':
			*ret_mode = MODE_CHECK;
			break;
		case 'P':
			*ret_mode = MODE_PRINT;
			break;
		case 'V':
			puts(PACKAGE_STRING);
			*ret_mode = MODE_LEAVE;
			return 0;
		case 'h':
			fputs(usage, stdout);
			*ret_mode = MODE_LEAVE;
			return 0;
		default:
			return error_set(err, ERR_ARGUMENT, "see mamba2d --help");
		}
	}
	if (!rc && optind < argc)
		return error_set(err, ERR_ARGUMENT, "%s: not an option; see mamba2d --help", argv[optind]);
	return rc;
}

static int check(const struct config *config, struct error *err)
{
	struct rights *rights;
	struct key_pair pair;
	struct model *model;
	int rc = security_read(config, NULL, &pair, &rights, err);

	if (rc)
		return rc;
	rights_free(rights);
	explicit_bzero(&pair, sizeof pair);
	rc = config_open_model(config, &model, err);
	if (rc)
		return rc;
	printf("configuration and checkpoint are good: %s, %zu layers, hidden_size %zu\n", config->model,
	       model->shape.num_layers, model->shape.hidden_size);
	model_free(model);
	return 0;
}

/* Each peer takes a descriptor: as many as the process may ask for. */
static void allow_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur >= limit.rlim_max)
		return;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		log_warning("the limit of descriptors stays as it is: %s", strerror(errno));
}

static int serve(struct config *config, const struct config_source *source, struct error *err)
{
	static struct server server;
	int rc;

	allow_descriptors();
	rc = server_open(&server, config, source, err);

	if (!rc)
		rc = server_run(&server, err);
	server_free(&server);
	if (!rc)
		log_notice("stopped: all that was accepted is published");
	return rc;
}

/* Do what the command line asks for. */
static int run(enum mode mode, struct config *config, const struct config_source *source, struct error *err)
{
	int rc = config_load(config, source, err);

	if (rc)
		return rc;
	if (mode == MODE_PRINT) {
		config_print(config, stdout);
		return 0;
	}
	log_set_level((enum log_level)config->log.level);
	rc = config_finish(config, err);
	if (rc)
		return rc;
	return mode == MODE_CHECK ? check(config, err) : serve(config, source, err);
}

int main(int argc, char **argv)
{
	struct config_source source = { { NULL, 0 }, { NULL, 0 } };
	struct config config = { .model = NULL };
	struct error err = { 0 };
	enum mode mode;
	int rc = read_options(argc, argv, &source, &mode, &err);

	if (!rc && mode != MODE_LEAVE)
		rc = run(mode, &config, &source, &err);
	if (rc) {
		config_locate(&config, &err);
		log_error("%s", err.text);
	}
	config_free(&config);
	string_list_clear(&source.files);
	string_list_clear(&source.overrides);
	return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}
