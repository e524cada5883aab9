"""The configuration directory."""

import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.config import Config, load_config
from ciruela.daemon.rules import check_modes, loose, private_group
from ciruela.model.config import DirConfig, OnConflict, Reuse, Symlinks
from ciruela.model.errors import ConfigError
from tests.proof import shows

MINIMAL = "directory: {images}\nappend-only: true\nnum-levels: 1\n"


class ConfigCase(SynchronousTestCase):
    """A configuration directory on disk."""

    def setUp(self) -> None:
        self.top = Path(os.path.abspath(self.mktemp())) / "etc"
        self.images = self.top.parent / "images"
        for path in (self.top / "configs", self.top / "keys", self.images):
            path.mkdir(parents=True)
            path.chmod(0o755)
        self.top.chmod(0o755)
        self.put("master.key", "")

    def put(self, name: str, text: str) -> Path:
        """Write a file of the configuration; ``{images}`` becomes the directory of images."""
        path = self.top / name
        path.write_text(text.replace("{images}", str(self.images)))
        path.chmod(0o644)
        return path

    def load(self) -> Config:
        return load_config(str(self.top))

    def one(self, text: str) -> DirConfig:
        """The configuration of ``app.yaml`` with this content."""
        self.put("configs/app.yaml", text)
        return self.load().directories["app"]

    def errors(self, text: str | None = None) -> list[str]:
        """Lines of the error, with ``app.yaml`` of this content; its path is cut off."""
        if text is not None:
            self.put("configs/app.yaml", text)
        message = str(self.assertRaises(ConfigError, self.load))
        return [line.removeprefix(f"{self.top}/configs/") for line in message.split("\n")]


class GoodTests(ConfigCase):
    """What the documentation promises is what a node does."""

    def test_minimal(self) -> None:
        """Three settings are enough, and the others have their defaults."""
        config = self.one(MINIMAL)
        self.assertEqual(config, DirConfig("app", str(self.images), True, 1))
        self.assertEqual(config.keep_recent_ms, 2 * 86_400_000)
        self.assertEqual(self.load().warnings, ())

    def test_full(self) -> None:
        """Every setting reaches its place, written with dashes or underscores; settings that begin with _ are nobody's business."""
        self.put("keys/ops.key", "")
        self.put("keys/ci.key", "")
        text = """
            directory: "{images}"
            append_only: false
            num-levels: 2
            upload-keys: [ops, ci, ops]
            download_keys:
            - ops
            auto-clean: true
            keep-list-file: {images}/../keep.txt
            keep-min-directories: 3
            keep_max_directories: 1k
            keep-recent: 1h 30min
            on-append-conflict: freeze
            max-image-bytes: 10Gi
            max-image-files: 1M
            max-images: 500
            symlinks: inside
            reuse: reflink
            keep-replaced: 3
            protect: [/srv/current, ../links/now]
            _note: {any: [thing]}
        """
        self.assertEqual(
            self.one("\n".join(line[12:] for line in text.split("\n"))),
            DirConfig(
                key="app",
                directory=str(self.images),
                append_only=False,
                num_levels=2,
                upload_keys=("ops", "ci"),
                download_keys=("ops",),
                auto_clean=True,
                keep_list_file=str(self.images.parent / "keep.txt"),
                keep_min_directories=3,
                keep_max_directories=1000,
                keep_recent_ms=5_400_000,
                on_append_conflict=OnConflict.FREEZE,
                max_image_bytes=10 << 30,
                max_image_files=1_000_000,
                max_images=500,
                symlinks=Symlinks.INSIDE,
                reuse=Reuse.REFLINK,
                keep_replaced=3,
                protect=("/srv/current", str(self.top / "configs/../links/now")),
            ),
        )
        self.assertEqual(self.load().warnings, ())

    def test_limits(self) -> None:
        """A limit that is empty is none; a word that does not exist is refused with those that do."""
        config = self.one(MINIMAL + "max-image-bytes: ~\nmax-image-files:\nmax-images: null\nsymlinks: any\n")
        self.assertEqual(config, DirConfig("app", str(self.images), True, 1))
        self.assertEqual(
            self.errors(MINIMAL + "on-append-conflict: frieze\nsymlinks: never\nmax-images: 0\nreuse: hard-link\n"),
            [
                'app.yaml:4: on-append-conflict: "frieze" is not converge or freeze (try freeze)',
                'app.yaml:5: symlinks: "never" is not any, inside or none (try any)',
                'app.yaml:6: max-images: "0" is not in the range from 1 to 4611686018427387904',
                'app.yaml:7: reuse: "hard-link" is not hardlink, reflink, copy or none (try hardlink)',
            ],
        )

    def test_kept_and_protected(self) -> None:
        """A link that is misspelled, or that is written as one text, would protect nothing without a word."""
        self.assertEqual(self.one(MINIMAL + "protect:\nkeep-replaced: 0\n"), DirConfig("app", str(self.images), True, 1))
        self.assertEqual(
            self.errors(MINIMAL + "protect: /srv/current\nkeep-replaced: 1001\n"),
            [
                'app.yaml:4: protect: "/srv/current" is not a list (try [/srv/current])',
                'app.yaml:5: keep-replaced: "1001" is not in the range from 0 to 1000',
            ],
        )
        (error,) = self.errors(MINIMAL + "protect: [~/current]\n")
        self.assertIn("is not a path that this program expands", error)
        self.one(MINIMAL + "protect: [/srv/current]\nkeep-replaced: 2\n")
        self.assertEqual(
            [warning.partition(": ")[2] for warning in self.load().warnings],
            [
                "without auto-clean nothing is removed, so protect protects nothing",
                "with append-only true nothing is replaced, so keep-replaced keeps nothing",
            ],
        )

    def test_numbers(self) -> None:
        """Numbers may be written as the reference allows it."""
        for text, number in {
            "1_000": 1000,
            "2k": 2000,
            "2ki": 2048,
            "1M": 10**6,
            "1Mi": 2**20,
            "0x1F": 31,
            "0o17": 15,
            "0b101": 5,
            "'7'": 7,
        }.items():
            self.assertEqual(self.one(f"{MINIMAL}keep-max-directories: {text}\n").keep_max_directories, number, text)

    def test_nothing_written(self) -> None:
        """A list without items and an optional path without a value are as if they were not there."""
        self.assertEqual(self.one(MINIMAL + "upload-keys:\nkeep-list-file:\n"), self.one(MINIMAL))

    def test_levels(self) -> None:
        """Level 0, the directory itself, and 16 are allowed, nothing outside."""
        for levels in (0, 16):
            self.assertEqual(self.one(f"directory: {self.images}\nappend-only: false\nnum-levels: {levels}\n").num_levels, levels)
        for levels in (-1, 17):
            self.assertIn("range from 0 to 16", self.errors(f"directory: {self.images}\nappend-only: false\nnum-levels: {levels}\n")[0])

    def test_relative(self) -> None:
        """A relative directory is one below the working directory of the start."""
        self.assertEqual(self.one("directory: some/../images\nappend-only: true\nnum-levels: 1\n").directory, os.path.abspath("images"))

    def test_which_files(self) -> None:
        """Hidden files and editor backups are no configuration; a file that looks forgotten is pointed out."""
        for name in (".hidden.yaml", "a.yaml~", "#a.yaml#", "a.yaml.bak"):
            self.put(f"configs/{name}", "broken: [")
        self.put("configs/a.yml", "broken: [")
        (self.top / "configs/dir.yaml").mkdir()
        target = self.put("real", MINIMAL)
        (self.top / "configs/link.yaml").symlink_to(target)
        config = self.load()
        self.assertEqual(list(config.directories), ["link"])
        self.assertEqual([line.split(": ")[0].rpartition("/")[2] for line in config.warnings], ["a.yml", "dir.yaml"])

    def test_no_configs(self) -> None:
        """A node without directories starts, and says that it takes nothing."""
        self.assertIn("takes no uploads", self.load().warnings[0])
        (self.top / "configs").rmdir()
        config = self.load()
        self.assertEqual(config.directories, {})
        self.assertIn("takes no uploads", config.warnings[0])

    def test_doubts(self) -> None:
        """What works but can hardly be meant is pointed out at the start."""

        def warned(text: str) -> str:
            self.one(text)
            return "\n".join(self.load().warnings)

        self.assertIn("keep-min-directories is above", warned(MINIMAL + "keep-min-directories: 200\n"))
        self.assertIn("does not exist", warned(MINIMAL.replace("{images}", "/nowhere/at/all")))
        self.assertIn("does not exist", warned("directory: /nowhere/at\nappend-only: false\nnum-levels: 0\n"))
        self.assertEqual("", warned("directory: {images}/new\nappend-only: false\nnum-levels: 0\n"))
        self.assertIn("only once", warned("directory: {images}/new\nappend-only: true\nnum-levels: 0\n"))
        self.assertIn("there is no file", warned(MINIMAL + "upload-keys: [ops]\n"))
        self.assertIn("write upload-keys: [ops]", warned(MINIMAL + "upload-keys: [ops.key]\n"))
        (self.top / "keys/ln.key").symlink_to("ops.key")
        self.assertIn("is a symlink", warned(MINIMAL + "upload-keys: [ln]\n"))
        (self.top / "master.key").unlink()
        self.assertIn("nobody can upload here", warned(MINIMAL))


class MistakeTests(ConfigCase):
    """An operator sees all mistakes at once, each with its place and a way out."""

    @shows("F60")
    @shows("W2")
    def test_what_was_meant(self) -> None:
        """A proposal that has nothing to do with what was written helps nobody."""
        self.assertIn('"24 images" is not a whole number (try 24)', self.errors(MINIMAL + "max-images: 24 images\n")[0])
        self.assertIn('"many" is not a whole number (try 2)', self.errors(MINIMAL + "max-images: many\n")[0])
        self.assertIn("(try https://shop.example.org/x)", self.errors(MINIMAL + "webhook: shop.example.org/x\n")[0])

    @shows("W2")
    def test_mount_point(self) -> None:
        """Every upload to it would fail for ever, with words of the system that name no setting."""
        self.patch(os.path, "ismount", lambda path: path == str(self.images))
        (found,) = self.errors("num-levels: 0\ndirectory: {images}\nappend-only: false\n")
        self.assertTrue(found.startswith("app.yaml:1: num-levels: 0 cannot work here"), found)
        self.assertIn("mount point", found)
        self.one("num-levels: 1\ndirectory: {images}\nappend-only: false\n")

    @shows("W2")
    def test_warnings_have_the_line_of_their_setting(self) -> None:
        """An editor that jumps to the line of a warning would always jump to the first one."""
        self.put(
            "configs/app.yaml",
            "directory: {images}\nappend-only: true\nnum-levels: 0\nprotect: [/srv/x]\nkeep-replaced: 2\nkeep-min-directories: 9\n"
            "keep-max-directories: 3\nupload-keys: [nobody]\n",
        )
        lines = [warning.partition("app.yaml:")[2].partition(":")[0] for warning in self.load().warnings]
        self.assertEqual(lines, ["3", "4", "5", "6", "8"])

    @shows("W2")
    def test_directory_that_cannot_be_written(self) -> None:
        """The daemon would start, and the first upload fail."""
        self.patch(os, "access", lambda path, mode: False)
        self.put("configs/app.yaml", MINIMAL)
        self.assertIn("this user cannot write to", self.load().warnings[0])

    def test_all_at_once(self) -> None:
        """Mistakes of several files and several settings come in one message."""
        self.put("configs/b.yaml", "directory: /x\nappend-only: yes\nnum-levels: 1\n")
        self.put("configs/c.yaml", "a: [")
        self.assertEqual(
            self.errors("directory: {images}\nappend-only: true\nnum-levels: one\nkeep-recent: 2 dayz\n"),
            [
                'app.yaml:3: num-levels: "one" is not a whole number (try 2)',
                'app.yaml:4: keep-recent: "2 dayz" is not a duration (try "2 days")',
                'b.yaml:2: append-only: "yes" is not true or false (try true)',
                "c.yaml:1: this is not YAML: expected the node content, but found '<stream end>'",
            ],
        )

    def test_required(self) -> None:
        """Each missing setting is named with an example."""
        expected = [f"app.yaml:1: {name}: this setting is required" for name in ("directory", "append-only", "num-levels")]
        for text in ("", "# nothing\n", "{}"):
            self.assertEqual([line.partition(" (")[0] for line in self.errors(text)], expected)

    def test_unknown(self) -> None:
        """A misspelt setting is an error, with the right spelling; it would otherwise silently not apply."""
        self.assertEqual(self.errors(MINIMAL + "keep-recnt: 1d\n"), ['app.yaml:4: "keep-recnt" is not a setting (try "keep-recent")'])
        self.assertIn("begin its name with _", self.errors(MINIMAL + "xyzzy: 1\n")[0])

    @shows("A47")
    def test_twice(self) -> None:
        """A setting that stands twice, in either spelling, is an error, not a lottery."""
        self.assertIn("app.yaml:4: append_only: this key stands in line 2 already", self.errors(MINIMAL + "append_only: false\n")[0])
        self.assertIn("app.yaml:4: append-only: this key stands in line 2 already", self.errors(MINIMAL + "append-only: false\n")[0])

    def test_values(self) -> None:
        """Each kind of wrong value has a message that says what was meant to stand there."""
        for line, said in {
            "auto-clean: True": '"True" is not true or false (try true)',
            "auto-clean: off": "(try false)",
            "auto-clean: [true]": "a list or a mapping is not true or false",
            "auto-clean:": "there is no value",
            "keep-min-directories: 0": '"0" is not in the range from 1',
            "keep-max-directories: -1": "range from 1",
            "keep-max-directories: 2G": "range from 1",
            "keep-max-directories: 1.5": "is not a whole number",
            "keep-max-directories: 0xk": "is not a whole number",
            f"keep-max-directories: {'9' * 5000}": "is not a whole number",
            "keep-recent: 30": 'try "30s"',
            "keep-recent: {a: b}": "is not a duration",
            "upload-keys: ops": '"ops" is not a list (try [ops])',
            "upload-keys: {ops: 1}": "a mapping is not a list",
            "upload-keys: [[ops]]": "is not the name of a key file",
            "upload-keys: [ops, ../x]": "not the name of a key file",
            "upload-keys: [.x]": "not the name of a key file",
            "upload-keys: ['a/b']": "not the name of a key file",
            "keep-list-file: ''": "is not a path",
            'keep-list-file: "a\\0b"': "is not a path",
            "keep-list-file: ~/keep": "home directory",
        }.items():
            (message,) = self.errors(MINIMAL + line + "\n")
            self.assertTrue(message.startswith(f"app.yaml:4: {line.partition(':')[0]}: "), message)
            self.assertIn(said, message)

    def test_not_settings(self) -> None:
        """A file that is a list or a word is no configuration."""
        for text in ("- a\n", "hello\n"):
            self.assertIn("app.yaml:1: the file must be", self.errors(text)[0])

    def test_file_names(self) -> None:
        """A file name that could never be uploaded to is an error instead of a directory that nobody can reach."""
        for name in ("a.new.yaml", "a\x01.yaml"):
            path = self.put(f"configs/{name}", MINIMAL)
            self.assertIn("the name cannot be", self.errors()[0])
            path.unlink()

    def test_unreadable_files(self) -> None:
        """A dangling symlink, a pipe and a huge file are errors; the start does not hang."""
        (self.top / "configs/app.yaml").symlink_to("nowhere")
        self.assertIn("app.yaml: it cannot be read: No such file", self.errors()[0])
        (self.top / "configs/app.yaml").unlink()
        os.mkfifo(self.top / "configs/app.yaml", 0o600)
        self.assertIn("app.yaml: it cannot be read: it is not a regular file", self.errors()[0])
        (self.top / "configs/app.yaml").unlink()
        self.assertIn("larger than 256 KiB", self.errors("#" * (256 * 1024 + 1))[0])

    def test_configs_is_no_directory(self) -> None:
        """Something else in the place of ``configs`` is an error, not an empty configuration."""
        configs = self.top / "configs"
        configs.rmdir()
        self.put("configs", "")
        self.assertEqual(self.errors(), [f"{configs}: it cannot be read: Not a directory"])
        configs.unlink()
        configs.symlink_to("configs")
        for message in self.errors():
            self.assertIn(f"{configs}: it cannot be ", message)

    def test_no_directory(self) -> None:
        """A misspelt --config is an error."""
        error = self.assertRaises(ConfigError, load_config, str(self.top / "gone"))
        self.assertIn("No such file or directory (make the directory", str(error))


class OverlapTests(ConfigCase):
    """An upload changes nothing that another signature put there, and none of this program's own files."""

    def two(self, first: str, second: str) -> list[str]:
        self.put("configs/app.yaml", MINIMAL.replace("{images}", first))
        self.put("configs/b.yaml", MINIMAL.replace("{images}", second))
        return self.errors()

    def test_same(self) -> None:
        """One directory under two keys, also by another spelling or a symlink, is refused."""
        link = self.images.parent / "link"
        link.symlink_to(self.images)
        for other in (str(self.images), f"{self.images}/../images/", str(link)):
            (message,) = self.two(str(self.images), other)
            self.assertIn(f"is the same as the directory of {self.top}/configs/app.yaml:1", message)
            self.assertTrue(message.startswith("b.yaml:1: directory: "))

    @shows("I3")
    def test_inside(self) -> None:
        """A directory inside another one's is refused, whichever comes first."""
        for first, second in ((f"{self.images}", f"{self.images}/a/b"), (f"{self.images}/a/b", f"{self.images}")):
            (message,) = self.two(first, second)
            self.assertIn("lies inside the directory of", message)

    def test_neighbors(self) -> None:
        """A name that merely begins like another is fine."""
        self.put("configs/app.yaml", MINIMAL)
        self.put("configs/b.yaml", MINIMAL.replace("{images}", f"{self.images}2"))
        self.assertEqual(len(self.load().directories), 2)

    def test_own_files(self) -> None:
        """Nobody can upload new keys, or a new state, by way of a directory that contains them."""
        for path, said in {
            str(self.top): "is the same as the configuration",
            str(self.top / "keys"): "lies inside the configuration",
            str(self.top.parent): "contains the configuration",
            "/": "contains the configuration",
        }.items():
            (message,) = self.errors(MINIMAL.replace("{images}", path))
            self.assertIn(said, message)

    def test_database(self) -> None:
        """The same for the database directory."""
        self.put("configs/app.yaml", MINIMAL)
        for path, said in {self.images: "is the same as", self.images.parent: "lies inside", self.images / "db": "contains"}.items():
            error = self.assertRaises(ConfigError, load_config, str(self.top), str(path))
            self.assertIn(f"{said} the database directory", str(error))
        self.assertEqual(len(load_config(str(self.top), str(self.top.parent / "db")).directories), 1)


class ModesTests(ConfigCase):
    """Who may not upload cannot make himself somebody who may."""

    @shows("A48", "F60")
    def test_strict(self) -> None:
        """A directory or file that everybody may write to ends the start, with the command that mends it."""
        self.put("configs/app.yaml", MINIMAL)
        self.put("keys/a.key", "")
        self.put("peers.txt", "")
        self.assertEqual(check_modes(str(self.top)), [])
        for name in ("", "master.key", "peers.txt", "keys", "configs", "keys/a.key", "configs/app.yaml"):
            path = self.top / name
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | 0o002)
            self.assertEqual(check_modes(str(self.top)), [f"{path}: everybody may write to it (run: chmod o-w)"])
            self.assertRaises(ConfigError, self.load)
            path.chmod(mode)

    @shows("A48", "F60")
    def test_symlink_target(self) -> None:
        """A symlink does not hide a file that everybody may write to."""
        target = self.put("real", MINIMAL)
        target.chmod(0o666)
        (self.top / "configs/app.yaml").symlink_to(target)
        self.assertIn("everybody may write", check_modes(str(self.top))[0])

    @shows("A48", "F60")
    def test_loose(self) -> None:
        """Owner, group and everybody: each may write only if they are trusted."""

        def judge(mode: int, uid: int = 0, gid: int = 7) -> str:
            status = os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))
            return loose(status, frozenset({0, 5}), lambda group: group == 9) or ""

        self.assertEqual(judge(0o100644), "")
        self.assertEqual(judge(0o100644, uid=5), "")
        self.assertIn("belongs to user 6", judge(0o100644, uid=6))
        self.assertIn("group 7", judge(0o100664))
        self.assertEqual(judge(0o100664, gid=9), "")
        self.assertIn("everybody", judge(0o100646))
        self.assertEqual(judge(0o120777), "")
        self.assertIn("belongs to user 6", judge(0o120777, uid=6))

    @shows("A48")
    def test_private_group(self) -> None:
        """Only root's group and the groups that users have alone may write."""
        import grp
        import pwd

        groups = {
            10: grp.struct_group(("ann", "x", 10, [])),
            11: grp.struct_group(("bob", "x", 11, ["bob", "eve"])),
            12: grp.struct_group(("staff", "x", 12, [])),
            13: grp.struct_group(("kim", "x", 13, [])),
        }
        users = {"ann": 10, "bob": 11, "kim": 99}
        self.patch(grp, "getgrgid", groups.__getitem__)
        self.patch(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "x", 1, users[name], "", "", "")))
        self.assertEqual([gid for gid in (0, 10, 11, 12, 13, 14) if private_group(gid)], [0, 10])
