"""Keys of a daemon and of its peers, in files as mamba2ctl makes them."""
import os
import subprocess

from harness import MAMBA2CTL


def keygen(path):
    subprocess.run([MAMBA2CTL, "keygen", path], check=True, capture_output=True)


def key(path):
    """The key in a key file."""
    with open(path) as file:
        return [line.split()[1] for line in file if not line.startswith("#")][0].encode()


class Keyring:
    """The keys of a daemon and of its peers, and the file that says what each may do."""

    def __init__(self, folder):
        self.folder, self.lines = str(folder), {}
        self.own, self.authorized = os.path.join(self.folder, "daemon"), os.path.join(self.folder, "authorized_keys")
        keygen(self.own)
        self.write()

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self):
        with open(self.authorized, "w") as file:
            file.write("# who  key  rights\n\n" + "".join(f"{line}\n" for line in self.lines.values()))

    def add(self, name, rights):
        """Authorise a key, a new one if there is none with this name; returns what a peer shows."""
        if not os.path.exists(self.path(name)):
            keygen(self.path(name))
        self.lines[name] = f"{name} {key(self.path(name) + '.pub').decode()} {rights}"
        self.write()
        return self.keys(name)

    def keys(self, name):
        return key(self.path(name) + ".pub"), key(self.path(name)), key(self.own + ".pub")

    def remove(self, name):
        del self.lines[name]
        self.write()
