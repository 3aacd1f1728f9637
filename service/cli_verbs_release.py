"""The parser of `temperd release`: releases of temperd itself, made and published on a laptop or in CI."""

from __future__ import annotations

from service.cli_verbs import Verbs, add_group, add_verb

_TEXT = """Releases of temperd itself, for boards that update themselves. docs/updates.md
examples:
  temperd release build --out dist --for-python 3.11 --wheel temperd-0.2.0-cp311-cp311-linux_aarch64.whl \\
                        --against packaging/deb/requirements-bookworm-arm64.txt
  temperd release publish dist/temperd-0.2.0-py3.11-aarch64.tar.gz --repo ./repo --keys ./keys
  temperd fleet roll-out update-agent 0.2.0 --group plant-1 --canary 10% --key alice.key"""
_BUILD = """Put wheels together as a release: temperd's own and those that boards are to get with it.
Everything else that temperd requires must be on the boards, in exactly the versions of --against."""


def release_verbs(verbs: Verbs) -> None:
    """Add `release` and its verbs."""
    kinds = add_group(verbs, "release", "releases of temperd itself: build, publish", _TEXT)
    build = add_verb(kinds, "build", "cli_release:build", _BUILD, config=False)
    build.add_argument("--out", metavar="DIR", required=True, help="where the file goes; made when missing")
    build.add_argument("--wheel", metavar="FILE", default="", help="temperd's wheel (built from --source by pip)")
    build.add_argument("--source", metavar="DIR", default=".", help="temperd's source, where no --wheel is given (.)")
    build.add_argument("--for-python", default="", metavar="3.N", help="the boards' Python (this one's)")
    build.add_argument("--arch", choices=("aarch64", "x86_64", "any"), default="", help="machine (that of the wheels)")
    text = "a wheel, or NAME==VERSION that pip fetches as one; repeatable"
    build.add_argument("--bundle", action="append", default=[], metavar="SPEC", help=text)
    text = "packages that boards have, NAME==VERSION a line (this environment's)"
    build.add_argument("--against", metavar="FILE", default="", help=text)
    build.add_argument("--security-floor", type=int, default=0, help="withdraw releases with a lower floor")
    text = "Sign a release into a model repository; boards learn of it with their next update command."
    publish = add_verb(kinds, "publish", "cli_release:publish", text, config=False)
    publish.add_argument("file", metavar="FILE", help="as `release build` made it")
    publish.add_argument("--repo", metavar="DIR", required=True, help="repository folder")
    publish.add_argument("--keys", metavar="DIR", required=True, help="folder of the repository's private keys")
    text = "Sign a bundle that `rauc bundle` made into a model repository, for the command update-system."
    system = add_verb(kinds, "publish-system", "cli_system:publish_system", text, config=False)
    system.add_argument("file", metavar="FILE", help="the bundle")
    system.add_argument("--name", required=True, help="of the image: small letters, digits, dots and dashes")
    system.add_argument(
        "--version", required=True, help="numbers with dots; the bundle's own, so that boards can compare"
    )
    system.add_argument("--compatible", required=True, help="RAUC's name of the boards, as in their system.conf")
    system.add_argument("--security-floor", type=int, default=0, help="withdraw images with a lower floor")
    system.add_argument("--repo", metavar="DIR", required=True, help="repository folder")
    system.add_argument("--keys", metavar="DIR", required=True, help="folder of the repository's private keys")
