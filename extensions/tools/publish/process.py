"""Uploads a run's LoRA with its card in one commit. The run is not changed. Paths,
images and captions of the dataset are uploaded only with `full_report`.

`type: publish` and `run.py publish` run it. The text of the card is made in `card`, and
paths are removed by `private`.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from extensions.tools.publish.card import (
    UNREACHABLE,
    family_of,
    model_card,
    section_of,
)
from extensions.tools.publish.config import PublishConfig
from extensions.tools.publish.private import public_text
from jobs.job import ExtensionJob
from jobs.process import BaseExtensionProcess
from toolkit.config.reading.tool import ToolConfig, load_tool
from toolkit.contracts.model import LicenceTerms
from toolkit.errors import RunError, UserError, first_line
from toolkit.extension import discover
from toolkit.files.redact import contains_secret, redact_text
from toolkit.files.safetensors_io import merge_files, read_metadata
from toolkit.files.writing import atomic_write, os_error_as_run_error, readable_size
from toolkit.train.run_reader import NetworkFile, list_samples, read_run

logger = logging.getLogger(__name__)

REPORT = "report.html"
WEIGHTS = ".safetensors"
MOST_SECONDS = 60
AGAIN = (408, 429)
"""Statuses below 500 that another attempt may fix."""


class PublishProcess(BaseExtensionProcess):
    """Uploads the files of a run. Faults on this machine are found before the hub is
    contacted.

    Example::

        python run.py publish output/my_char --repo me/my_char
    """

    section: PublishConfig

    def run(self) -> None:
        super().run()
        section = self.section
        with TemporaryDirectory(prefix="publish-") as workplace:
            if section.preview:
                files = self._files(section.repo, Path(workplace))
                self._preview(Path(section.preview).expanduser(), files)
            elif get_token():
                self._publish(Path(workplace))
            else:
                remedy = "Set HF_TOKEN to a token that may write, or log in with `hf auth login`"
                raise UserError(
                    f"no token for the hub. {remedy}, then: {section.command()}"
                )

    def _publish(self, workplace: Path) -> None:
        """Uploads, and starts over while the hub cannot be reached or cannot answer.
        Each step may be done twice. (Within the upload the hub's library retries by
        itself.)"""
        section = self.section
        api = HfApi()
        files: dict[str, Path | bytes] = {}
        for attempt in range(1, section.attempts + 1):
            try:
                repo = section.repo
                if "/" not in repo:
                    repo = f"{api.whoami()['name']}/{repo}"
                files = files or self._files(repo, workplace)
                api.create_repo(
                    repo, private=section.private, repo_type="model", exist_ok=True
                )
                if section.private and not api.repo_info(repo).private:
                    raise UserError(
                        f"repo: {repo} is public. Give another name, or set private to false (--private false)."
                    )
                operations = [
                    CommitOperationAdd(name, data) for name, data in files.items()
                ]
                weights = ", ".join(name for name in files if name.endswith(WEIGHTS))
                message = f"{Path(section.run).name}: {weights}"
                done = api.create_commit(repo, operations, commit_message=message)
                break
            except UNREACHABLE as error:
                self._wait_or_raise(attempt, error)
        logger.info(
            f"published: {done.repo_url} ({'private' if section.private else 'public'})"
        )

    def _wait_or_raise(self, attempt: int, error: Exception) -> None:
        """Waits before the next attempt. Raises RunError where another one is of no
        use, or was the last."""
        section = self.section
        why = first_line(error)
        response = getattr(error, "response", None)
        status = 500 if response is None else response.status_code
        is_final = isinstance(error, OfflineModeIsEnabled) or (
            status < 500 and status not in AGAIN
        )
        if attempt < section.attempts and not is_final:
            seconds = min(2**attempt, MOST_SECONDS)
            logger.info(
                f"attempt {attempt} of {section.attempts}: {why}; again in {seconds} s"
            )
            time.sleep(seconds)
            return
        help_ = "Later"
        reason = f"the hub cannot be reached ({why})"
        if isinstance(error, HfHubHTTPError):
            reason = f"the hub rejects it ({why})"
            may_write = "Set HF_TOKEN to a token that may write to it, then"
            help_ = may_write if status in (401, 403) else "Fix it, then"
        raise RunError(
            f"{section.repo}: {reason}. {help_}: {section.command()}"
        ) from error

    def _files(self, repo: str, workplace: Path) -> dict[str, Path | bytes]:
        """Name in the repository -> file, or its content. The log lists their sizes."""
        section, run = self.section, read_run(self.section.folder())
        trained = section_of(run)
        settings = trained.model_dump(mode="json") if trained else None
        public = public_text(run.folder, settings)
        loras = [self._public_lora(lora, public, workplace) for lora in section.loras()]
        samples = list_samples(section.folder())
        last = [sample for sample in samples if sample.step == samples[-1].step]
        shown = [
            (f"samples/{sample.path.name}", sample)
            for sample in last[: section.samples]
        ]
        files: dict[str, Path | bytes] = {lora.path.name: lora.path for lora in loras}
        files |= {name: sample.path for name, sample in shown}
        report = section.folder() / REPORT
        if report.is_file() and not section.full_report:
            report = self._public_report(workplace / REPORT)
        if report.is_file():
            files[REPORT] = report
        secret_names = [name for name in files if contains_secret(name)]
        if secret_names:
            raise UserError(
                f"the name of {redact_text(secret_names[0])} holds a secret. Rename the file."
            )
        family = family_of(trained, loras)
        if family and family.terms:
            files["NOTICE"] = f"{family.terms.notice}\n".encode()
            base = trained.model.files_folder() if trained else Path("-")
            texts = {text.name: text for text in base.glob("LICENSE*")}
            files |= texts
            self._warn_of(family.terms, repo, bool(texts))
        files["README.md"] = public(
            model_card(run, trained, repo, loras, shown, section.licence)
        ).encode()
        sizes = {
            name: len(data) if isinstance(data, bytes) else data.stat().st_size
            for name, data in files.items()
        }
        logger.info(
            f"for {repo}: {len(files)} files, {readable_size(sum(sizes.values()))}"
        )
        for name, size in sizes.items():
            logger.info(f"  {readable_size(size):>8}  {name}")
        return files

    def _warn_of(self, terms: LicenceTerms, repo: str, has_text: bool) -> None:
        """Warns of what the licence asks and is not done."""
        name = repo.rpartition("/")[2]
        if not name.lower().startswith(terms.name_begins.lower()):
            logger.warning(
                f"repo: {name}: the licence of the base model asks for a name that begins with {terms.name_begins!r}, "
                f"such as {terms.name_begins}-{name} ({terms.link})"
            )
        if not has_text:
            logger.warning(
                f"LICENSE: the licence of the base model asks for its text, which is not in the model's folder. It "
                f"belongs in the repository: {terms.link}"
            )

    def _public_lora(
        self, lora: NetworkFile, public: Callable[[str], str], workplace: Path
    ) -> NetworkFile:
        """A file without paths and secrets in its metadata: itself, or a copy of its
        weights."""
        metadata = read_metadata(lora.path)
        cleaned = {key: public(text) for key, text in metadata.items()}
        if cleaned == metadata:
            return lora
        changed_keys = ", ".join(
            key for key, text in metadata.items() if cleaned[key] != text
        )
        logger.info(
            f"{lora.path.name}: its metadata contains a path or a secret ({changed_keys}), which is removed"
        )
        copy = workplace / lora.path.name
        with os_error_as_run_error(copy):
            merge_files({lora.path: ""}, copy, cleaned)
        return replace(lora, path=copy, size=copy.stat().st_size)

    def _public_report(self, path: Path) -> Path:
        table = discover()
        model = table.find_config("report")
        assert model is not None and issubclass(model, ToolConfig)
        flags = ["--output", str(path), "--share", "true", "--hashes", "false"]
        flags.insert(0, self.section.run)
        report_logger = logging.getLogger("extensions.tools.report")
        report_logger.setLevel(logging.WARNING)  # its line names a temporary file
        try:
            ExtensionJob(load_tool("report", model, flags), table).run()
        finally:
            report_logger.setLevel(logging.NOTSET)
        return path

    def _preview(self, folder: Path, files: Mapping[str, Path | bytes]) -> None:
        taken = [name for name in files if os.path.lexists(folder / name)]
        if taken:
            raise UserError(
                f"preview: '{folder / taken[0]}' exists and is not overwritten. Give another folder."
            )
        for name, data in files.items():
            target = folder / name
            with os_error_as_run_error(target), atomic_write(target) as temporary:
                if isinstance(data, bytes):
                    temporary.write_bytes(data)
                else:
                    shutil.copyfile(data, temporary)
        logger.info(f"{folder}: what would be uploaded to {self.section.repo}")
