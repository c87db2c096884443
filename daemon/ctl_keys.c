/*
 * mamba2ctl keygen, and the options with which all commands that connect show keys.
 */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "daemon/ctl.h"

bool ctl_keys_option(struct ctl_keys *keys, int option, const char *argument)
{
	if (option == 'K')
		keys->key = argument;
	else if (option == 'S')
		keys->server_key = argument;
	return option == 'K' || option == 'S';
}

int ctl_connect(enum client_kind kind, const char *address, const struct ctl_keys *keys, struct client **ret_client,
		struct error *err)
{
	struct client_keys read;
	int rc;

	if (!keys->key && !keys->server_key)
		return client_new(kind, address, NULL, ret_client, err);
	if (!keys->key || !keys->server_key)
		return error_set(err, ERR_ARGUMENT, "--key and --server-key go together");
	if (keys_read_secret(keys->key, &read.own, err) || keys_read_public(keys->server_key, read.server, err))
		return err->code;
	rc = client_new(kind, address, &read, ret_client, err);
	explicit_bzero(&read, sizeof read);
	return rc;
}

int ctl_keygen(int argc, char **argv)
{
	static const struct option options[] = { { NULL, 0, NULL, 0 } };
	struct key_pair pair;
	struct error err;
	int rc;

	if (getopt_long(argc, argv, "", options, NULL) != -1)
		return ctl_usage("keygen", NULL);
	if (argc - optind != 1)
		return ctl_usage("keygen", "expected FILE");
	rc = keys_generate(&pair, &err);
	if (!rc)
		rc = keys_write(argv[optind], &pair, &err);
	explicit_bzero(pair.secret_key, sizeof pair.secret_key);
	if (rc)
		return ctl_fail("keygen", CTL_FAILED, &err);
	printf("secret key in %s, public key in %s.pub: %s\n", argv[optind], argv[optind], pair.public_key);
	return CTL_OK;
}
