"""Which keys sign an upload."""

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.identities import HURRY_S, Identities, exposed, load_identities, read_key_file, terminal
from ciruela.keys.public import PassphraseNeeded, PrivateKey, PublicKey, parse_private, parse_public, verify
from ciruela.model.errors import BadKey
from ciruela.net.agent import LIST_TIMEOUT_S, AgentFailed, AgentKeys
from tests.keys.samples import PASSPHRASE, sample
from tests.proof import shows

HOME = "/home/me"
ED25519 = f"{HOME}/.ssh/id_ed25519"
CIRUELA = f"{HOME}/.ssh/id_ciruela"
OWN = f"{HOME}/.ciruela/id_ed25519"
PLAIN = parse_public(sample("plain.pub"))
LOCKED = parse_public(sample("locked.pub"))
SAMPLE = parse_public(sample("appendix-c.pub"))


class HeldKey:
    """A key in a doubled agent."""

    def __init__(self, public: PublicKey, key: PrivateKey | None) -> None:
        self.public = public
        self._key = key

    def sign(self, data: bytes) -> Deferred[bytes]:
        if self._key is None:
            return fail(AgentFailed("the ssh-agent refused"))
        return succeed(self._key.sign(data))


def held(name: str, refuses: bool = False) -> HeldKey:
    """The sample ``name``, in an agent."""
    key = parse_private(sample(name), PASSPHRASE)
    return HeldKey(PublicKey(key.public.raw, f"{name} in agent"), None if refuses else key)


class LoadTests(SynchronousTestCase):
    """The upload is signed with the keys that the user expects, and only with those."""

    def setUp(self) -> None:
        self.files: dict[str, str | OSError] = {}
        self.environ: dict[str, str] = {}
        self.agent: AgentKeys | AgentFailed = AgentKeys((), ())
        self.asked_agents: list[str] = []
        self.timeouts: list[float] = []
        self.exposed: dict[str, str] = {}
        self.answers: list[str] | None = None
        self.prompts: list[str] = []
        self.in_threads: list[Callable[..., Any]] = []

    def read_file(self, path: str) -> bytes:
        content = self.files.get(path, FileNotFoundError(2, "No such file or directory"))
        if isinstance(content, OSError):
            raise content
        return content.encode()

    def ask(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return self.answers.pop(0)

    def ask_agent(self, path: str, timeout_s: float) -> Deferred[AgentKeys]:
        self.asked_agents.append(path)
        self.timeouts.append(timeout_s)
        return fail(self.agent) if isinstance(self.agent, AgentFailed) else succeed(self.agent)

    def in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        self.in_threads.append(function)
        return maybeDeferred(function, *args)

    def hold(self, *keys: HeldKey, notes: tuple[str, ...] = ()) -> None:
        """Run an agent that holds ``keys``."""
        self.environ["SSH_AUTH_SOCK"] = "/run/agent"
        self.agent = AgentKeys(tuple(keys), notes)

    def started(self, *files: str, env: tuple[str, ...] = (), home: str | None = HOME) -> Deferred[Identities]:
        return load_identities(
            files,
            env,
            environ=self.environ,
            home=home,
            read_file=self.read_file,
            ask_passphrase=None if self.answers is None else self.ask,
            agent=self.ask_agent,
            in_thread=self.in_thread,
            exposed=self.exposed.get,
        )

    def loaded(self, *files: str, env: tuple[str, ...] = ()) -> Identities:
        return self.successResultOf(self.started(*files, env=env))

    def refused(self, *files: str, env: tuple[str, ...] = ()) -> str:
        return str(self.failureResultOf(self.started(*files, env=env), BadKey).value)

    def found(self, identities: Identities) -> list[PublicKey]:
        return [key.public for key in identities.keys]

    # -- the usual places

    def test_usual_places(self) -> None:
        """All usual places are looked at, in the order of the protocol, and every key found signs."""
        self.environ["CIRUELA_KEY"] = sample("appendix-c").replace("\n", " ")
        self.files = {ED25519: sample("plain")}
        self.hold(held("locked"))
        identities = self.loaded()
        self.assertEqual(self.found(identities), [SAMPLE, PLAIN, LOCKED])
        self.assertEqual([key.origin for key in identities.keys], ["$CIRUELA_KEY", ED25519, "ssh-agent"])
        self.assertEqual(identities.notes, ())

    def test_each_usual_file(self) -> None:
        """A key is found in each of the three files."""
        for path in (ED25519, CIRUELA, OWN):
            self.files = {path: sample("plain")}
            self.assertEqual([key.origin for key in self.loaded().keys], [path])

    def test_nothing_found(self) -> None:
        """Without any key the user is told so and where keys were looked for; the refusal of the servers would not say it."""
        for home in (HOME, None):
            identities = self.successResultOf(self.started(home=home))
            self.assertEqual(identities.keys, ())
            self.assertIn("no key was found in $CIRUELA_KEY, ~/.ssh/id_ed25519", identities.notes[0])
            self.assertEqual(self.successResultOf(identities.sign_all(b"x")), ())

    def test_bad_key_does_not_stop_others(self) -> None:
        """A key of another kind, a damaged one, or one that cannot be read in a usual place is left out with a note."""
        self.environ["CIRUELA_KEY"] = "hello"
        self.files = {ED25519: sample("rsa"), CIRUELA: PermissionError(13, "Permission denied"), OWN: sample("plain")}
        identities = self.loaded()
        self.assertEqual(self.found(identities), [PLAIN])
        self.assertEqual(len(identities.notes), 3)
        for note, said in zip(
            identities.notes, ("$CIRUELA_KEY: it is not a private", f"{ED25519}: it is an RSA key", "denied"), strict=True
        ):
            self.assertIn(said, note)

    def test_empty_variable(self) -> None:
        """An empty CIRUELA_KEY counts as none."""
        self.environ["CIRUELA_KEY"] = ""
        self.files = {ED25519: sample("plain")}
        self.assertEqual(self.loaded().notes, ())

    def test_locked_without_terminal(self) -> None:
        """In a cron job a locked key is left out with a note that says what would help."""
        self.files = {ED25519: sample("locked"), OWN: sample("plain")}
        identities = self.loaded()
        self.assertEqual(self.found(identities), [PLAIN])
        self.assertIn("needs its passphrase", identities.notes[0])

    def test_locked_with_terminal(self) -> None:
        """On a terminal the passphrase is asked for, again after a mistake, and off the reactor."""
        self.files = {ED25519: sample("locked")}
        self.answers = ["wrong", PASSPHRASE.decode()]
        self.assertEqual(self.found(self.loaded()), [LOCKED])
        self.assertEqual(self.prompts, [f"Passphrase of {ED25519}: "] * 2)
        self.assertIn(self.ask, self.in_threads)
        self.assertIn(parse_private, self.in_threads)
        self.assertIn(self.read_file, self.in_threads)

    def test_no_passphrase_given(self) -> None:
        """Who just presses return goes on without that key."""
        self.files = {ED25519: sample("locked"), OWN: sample("plain")}
        self.answers = [""]
        identities = self.loaded()
        self.assertEqual(self.found(identities), [PLAIN])
        self.assertIn("no passphrase was given", identities.notes[0])

    def test_three_tries(self) -> None:
        """A wrong passphrase is not asked for for ever."""
        self.files = {ED25519: sample("locked")}
        self.answers = ["wrong"] * 10
        self.assertIn("wrong 3 times", self.loaded().notes[0])
        self.assertEqual(len(self.prompts), 3)

    @shows("W1")
    def test_no_passphrase_for_a_cipher_that_is_unknown(self) -> None:
        """Somebody would type a passphrase for a key that no passphrase opens."""
        self.files = {ED25519: sample("locked-chacha")}
        self.answers = []
        self.assertIn("chacha20-poly1305@openssh.com, which cannot be read", self.loaded().notes[0])
        self.assertIn("ssh-keygen -p", self.refused(ED25519))
        self.assertEqual(self.prompts, [])
        key = self.assertRaises(PassphraseNeeded, parse_private, sample("locked-chacha")).public
        self.hold(HeldKey(key, PrivateKey(bytes(32))))
        self.assertEqual(self.found(self.loaded()), [key])

    @shows("W1")
    def test_hung_agent(self) -> None:
        """Each upload would wait for ten seconds, although its key lies in a file."""
        self.environ["SSH_AUTH_SOCK"] = "/run/agent"
        self.files = {ED25519: sample("plain")}
        self.loaded()
        self.files = {}
        self.started()
        self.assertEqual(self.timeouts, [HURRY_S, LIST_TIMEOUT_S])
        self.assertTrue(LIST_TIMEOUT_S > 4 * HURRY_S)

    @shows("W1")
    def test_key_that_others_may_read(self) -> None:
        """Whoever is on that machine could sign as this user, and nobody would have said so."""
        path = os.path.abspath(self.mktemp())
        for mode, whom in ((0o600, None), (0o400, None), (0o640, "group"), (0o604, "everybody"), (0o644, "everybody")):
            with open(path, "w", encoding="ascii"):
                os.chmod(path, mode)
            found = exposed(path)
            self.assertEqual(found is None, whom is None)
            self.assertTrue(whom is None or (whom in str(found) and f"chmod 600 {path}" in str(found)))
            os.unlink(path)
        self.assertIsNone(exposed(path))
        self.files = {ED25519: sample("plain")}
        self.exposed = {ED25519: "it is open"}
        loaded = self.loaded()
        self.assertEqual((self.found(loaded), loaded.notes), ([PLAIN], (f"{ED25519}: it is open",)))

    def test_agent_spares_passphrase(self) -> None:
        """A locked key that the agent holds signs without a question, and once."""
        self.files = {ED25519: sample("locked")}
        self.answers = []
        self.hold(held("locked"))
        identities = self.loaded()
        self.assertEqual([key.origin for key in identities.keys], [f"{ED25519}, ssh-agent"])
        self.assertEqual(self.prompts, [])
        self.assertEqual(self.asked_agents, ["/run/agent"])

    def test_same_key_twice(self) -> None:
        """A key that is in a file and in the agent signs once."""
        self.files = {ED25519: sample("plain"), OWN: sample("plain")}
        self.hold(held("plain"))
        self.assertEqual([key.origin for key in self.loaded().keys], [ED25519])

    def test_agent_notes(self) -> None:
        """What is wrong with the agent is told, and is no reason to stop."""
        self.hold(notes=("ssh-agent: rsa: not used",))
        self.files = {ED25519: sample("plain")}
        self.assertEqual(self.loaded().notes, ("ssh-agent: rsa: not used",))
        self.agent = AgentFailed("the ssh-agent at /run/agent cannot be reached")
        identities = self.loaded()
        self.assertEqual(self.found(identities), [PLAIN])
        self.assertEqual(identities.notes, ("the ssh-agent at /run/agent cannot be reached",))

    def test_no_agent(self) -> None:
        """Without SSH_AUTH_SOCK no agent is looked for."""
        self.environ["SSH_AUTH_SOCK"] = ""
        self.loaded()
        self.assertEqual(self.asked_agents, [])

    @shows("K7.4")
    def test_many_keys(self) -> None:
        """Who has more keys in the agent than servers look at could upload nothing, or would not learn which keys do not count."""
        keys = [PrivateKey(bytes([number]) * 32) for number in range(18)]
        self.hold(*(HeldKey(key.public, key) for key in keys[:16]))
        self.assertEqual(self.loaded().notes, ())
        self.hold(*(HeldKey(key.public, key) for key in keys))
        identities = self.loaded()
        self.assertEqual(self.found(identities), [key.public for key in keys[:16]])
        (note,) = identities.notes
        self.assertIn("there are 18 keys, and servers look at 16 signatures; left out: ", note)
        for key in keys[16:]:
            self.assertIn(key.public.fingerprint(), note)
        self.assertEqual(len(self.successResultOf(identities.sign_all(b"text"))), 16)

    # -- named keys

    def test_named_only(self) -> None:
        """With -i or -k exactly the named keys sign, nothing that lies around."""
        self.environ = {"CIRUELA_KEY": sample("appendix-c"), "DEPLOY": sample("plain")}
        self.files = {ED25519: sample("appendix-c"), "deploy": sample("plain")}
        self.hold(held("appendix-c"))
        self.assertEqual([key.origin for key in self.loaded("deploy").keys], ["deploy"])
        self.assertEqual([key.origin for key in self.loaded(env=("DEPLOY",)).keys], ["$DEPLOY"])
        self.assertEqual(self.found(self.loaded(ED25519, env=("DEPLOY",))), [SAMPLE, PLAIN])
        self.assertEqual(self.asked_agents, [])

    def test_named_must_work(self) -> None:
        """A named key that cannot be used stops the upload with its name and the reason."""
        self.files = {"rsa": sample("rsa"), "denied": PermissionError(13, "Permission denied"), "empty": "", "good": sample("plain")}
        self.environ = {"EMPTY": "", "BAD": "x"}
        self.assertIn("rsa: it is an RSA key", self.refused("good", "rsa"))
        self.assertIn("denied: it cannot be read: Permission denied", self.refused("denied"))
        self.assertIn("gone: it cannot be read: No such file", self.refused("gone"))
        self.assertIn("empty: it is empty", self.refused("empty"))
        self.assertIn("$EMPTY: it is empty", self.refused(env=("EMPTY",)))
        self.assertIn("$UNSET: it is not set", self.refused(env=("UNSET",)))
        self.assertIn("$BAD: it is not a private key at all", self.refused("good", env=("BAD",)))

    def test_named_locked(self) -> None:
        """A named locked key is opened by the agent, or by a passphrase, or stops the upload."""
        self.files = {"deploy": sample("locked")}
        self.assertIn("deploy: the key", self.refused("deploy"))
        self.answers = [PASSPHRASE.decode()]
        self.assertEqual(self.found(self.loaded("deploy")), [LOCKED])
        self.answers = ["wrong"] * 3
        self.assertIn("deploy: the passphrase was wrong 3 times", self.refused("deploy"))
        self.hold(held("locked"))
        self.assertEqual([key.origin for key in self.loaded("deploy").keys], ["deploy, ssh-agent"])

    def test_named_public(self) -> None:
        """-i with a .pub file chooses one key of the agent."""
        self.files = {"deploy.pub": sample("plain.pub")}
        self.assertIn("deploy.pub: it is a public key, and no ssh-agent holds", self.refused("deploy.pub"))
        self.hold(held("appendix-c"), held("plain"))
        identities = self.loaded("deploy.pub")
        self.assertEqual(self.found(identities), [PLAIN])
        self.files = {"deploy.pub": sample("rsa.pub")}
        self.assertIn("deploy.pub: it is an RSA key", self.refused("deploy.pub"))

    def test_named_with_dead_agent(self) -> None:
        """A dead agent does not keep a user on a terminal from typing the passphrase."""
        self.files = {"deploy": sample("locked")}
        self.hold()
        self.agent = AgentFailed("gone")
        self.answers = [PASSPHRASE.decode()]
        identities = self.loaded("deploy")
        self.assertEqual(self.found(identities), [LOCKED])
        self.assertEqual(identities.notes, ("gone",))

    # -- what is made of them

    def test_describe(self) -> None:
        """The user sees fingerprint, comment and origin of each key; a .pub file of another key lends no comment."""
        self.files = {"a": sample("plain"), "a.pub": sample("plain.pub"), "b": sample("appendix-c"), "b.pub": sample("plain.pub")}
        lines = self.loaded("a", "b").describe()
        self.assertEqual(lines, [f"{PLAIN.fingerprint()} plain@example (a)", f"{SAMPLE.fingerprint()} (b)"])

    def test_sign_all(self) -> None:
        """Each key signs the same bytes."""
        self.files = {"a": sample("plain"), "b": sample("locked")}
        self.hold(held("locked"))
        made = self.successResultOf(self.loaded("a", "b").sign_all(b"data"))
        self.assertEqual([public for public, _ in made], [PLAIN, LOCKED])
        for public, signature in made:
            self.assertTrue(verify(public, b"data", signature))

    def test_agent_fails_later(self) -> None:
        """A key of the agent that nobody named may fail when another one signs; it is logged."""
        self.files = {ED25519: sample("plain")}
        self.hold(held("appendix-c", refuses=True))
        made = self.successResultOf(self.loaded().sign_all(b"data"))
        self.assertEqual([public for public, _ in made], [PLAIN])

    def test_named_key_fails_later(self) -> None:
        """A named key that does not sign stops the upload: servers might ask for just that one."""
        self.files = {"a": sample("plain"), "b.pub": sample("appendix-c.pub")}
        self.hold(held("appendix-c", refuses=True))
        self.failureResultOf(self.loaded("a", "b.pub").sign_all(b"data"), BadKey)

    def test_no_key_signs(self) -> None:
        """When there are keys and none of them signs, that is said, instead of a refusal by the servers."""
        self.hold(held("plain", refuses=True))
        failure = self.failureResultOf(self.loaded().sign_all(b"data"), BadKey)
        self.assertIn("no key could sign: the ssh-agent refused", str(failure.value))


class WorldTests(SynchronousTestCase):
    """The real files behind the seams."""

    def test_read_key_file(self) -> None:
        """A directory, a pipe or a huge file is named as such; the client does not hang on it."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"x" * 65536)
        self.assertEqual(len(read_key_file(path)), 65536)
        with open(path, "ab") as file:
            file.write(b"x")
        self.assertIn("larger than 64 KiB", str(self.assertRaises(OSError, read_key_file, path)))
        os.mkdir(path + ".d")
        self.assertRaises(OSError, read_key_file, path + ".d")
        os.mkfifo(path + ".p")
        self.assertIn("not a regular file", str(self.assertRaises(OSError, read_key_file, path + ".p")))
        self.assertRaises(FileNotFoundError, read_key_file, path + ".gone")

    def test_terminal(self) -> None:
        """Without a controlling terminal nobody is asked; with one, the end of input counts as no answer."""

        def closed(*_: object) -> int:
            raise OSError(6, "No such device or address")

        self.patch(os, "open", closed)
        self.assertIsNone(terminal())
        self.patch(os, "open", lambda *_: os.dup(0))
        ask = terminal()

        def ended(_: str) -> str:
            raise EOFError

        self.patch(__import__("getpass"), "getpass", ended)
        self.assertEqual(ask("Passphrase: "), "")
