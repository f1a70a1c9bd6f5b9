"""
Publishing that cannot lose a run: a failed upload is reported, with what the Hub holds and the command that finishes.

A run of days ends with one HTTP request. In transformers, its failure raises an exception after the last step, and a
failed upload of a checkpoint is not reported at all.
"""

import shlex
import time
import traceback
from concurrent.futures import CancelledError, Future
from pathlib import Path

from accelerate.utils import is_peft_model
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .._logging import logger
from ._trl import TrainerMixin, get_config_model_id
from .model_card import build_model_card


# As `Trainer.push_to_hub`
_IGNORED = ("_*", f"{PREFIX_CHECKPOINT_DIR}-*")
_DEFAULT_ENDPOINT = "https://huggingface.co"
_RETRY_AFTER = (5.0, 20.0, 60.0)  # seconds; the Hub's client retries uploads of files, but not the commit


class RepositoryNotCreatedError(ValueError):
    """The Hub did not create a repository."""


class PublishingMixin(TrainerMixin):
    """Adds to `push_to_hub` a card of this package, retries, and messages instead of errors."""

    def init_hf_repo(  # type: ignore[override]  # older transformers have no `private`
        self, token: str | None = None, **options
    ) -> None:
        """
        Create the repository, before anything is trained.

        Args:
            token (`str`, *optional*): Token of the Hub.
            options: Options of [`~transformers.Trainer.init_hf_repo`]; `private` since transformers 5.23.

        Raises:
            [`RepositoryNotCreatedError`]: if the Hub refuses or cannot be reached, naming the settings to look at.
        """
        try:
            super().init_hf_repo(token=token, **options)
        except Exception as error:
            if not _is_from_the_hub(error):
                raise
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            look_at = (
                "hub_model_id and that the token may write (`hf auth whoami`; log in with `hf auth login`, or set "
                "HF_TOKEN)"
                if _status_of(error) is not None
                else "the connection and HF_ENDPOINT"
            )
            raise RepositoryNotCreatedError(
                f"push_to_hub: the Hub at {HfApi().endpoint} did not create the repository {name!r} "
                f"({_describe(error)}). Check {look_at}, or set push_to_hub: false and publish later with\n"
                f"  {_upload_command(name, self.args.output_dir)}"
            ) from error

    def create_model_card(  # type: ignore[override]  # as TRL's
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """
        Write `README.md` to the output directory, in place of TRL's card.

        Args:
            model_name (`str`, *optional*): Title; the name of the output directory by default.
            dataset_name (`str` or `list[str]`, *optional*): Hub names; taken from the data set where it has one.
            tags (`str` or `list[str]`, *optional*): Further tags.
        """
        if not self.is_world_process_zero():
            return
        base_model = get_config_model_id(self.model.config)
        names = [dataset_name] if isinstance(dataset_name, str) else dataset_name or _hub_names(self.train_dataset)
        card = build_model_card(
            self.args,
            None if self.token_credit is None else self.token_credit.chain,
            model_name=model_name or Path(self.args.output_dir).absolute().name,
            repo_id=self.hub_model_id,
            base_model=base_model if base_model and not Path(base_model).exists() else None,
            datasets=[name for name in names if not Path(name).exists()],
            tags=[*self._tag_names, *([tags] if isinstance(tags, str) else tags or [])],
            is_adapter=is_peft_model(self.accelerator.unwrap_model(self.model)),
            has_chat_template=getattr(self.processing_class, "chat_template", None) is not None,
            steps=self.state.global_step,
        )
        card.save(Path(self.args.output_dir) / "README.md")

    def push_to_hub(  # type: ignore[override]  # older transformers have no `private`
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **options,
    ):
        """
        [`~transformers.Trainer.push_to_hub`], which after some retries reports a failure instead of raising it.

        Args:
            commit_message, blocking, token, revision, options:
                Arguments of that method; `private` since transformers 5.23. `hub_private_repo` works with any.

        Returns:
            The Hub's answer; `None` on other processes, and if anything could not be published.
        """
        try:
            result = super().push_to_hub(
                commit_message=commit_message,
                blocking=blocking,
                token=token,
                revision=revision,
                **options,
            )
            if isinstance(result, Future):
                result.add_done_callback(_report_upload)
            return result
        except RepositoryNotCreatedError as error:
            # The other processes are saving the model, which takes all of them.
            self.save_model(_internal_call=True)
            logger.error(f"The model is complete in {self.args.output_dir}, but not published. {error}")
            return None
        except Exception as error:  # on the main process only: the others have returned
            if not _is_from_the_hub(error):
                raise
            failure = error
        upload: dict = {
            "repo_id": self.hub_model_id,
            "folder_path": self.args.output_dir,
            "commit_message": commit_message,
            "token": token if token is not None else self.args.hub_token,
            "revision": revision if revision is not None else self.args.hub_revision,
        }
        # The method above is not called again: it saves the model, which takes all processes.
        for wait in _RETRY_AFTER:
            if not _may_pass(failure):
                break
            logger.warning(f"The Hub did not take the model ({_describe(failure)}). Trying again in {wait:.0f} s.")
            time.sleep(wait)
            try:
                # The client appends patterns of its own to the list that it is given.
                return HfApi().upload_folder(**upload, ignore_patterns=[*_IGNORED])
            except Exception as error:
                if not _is_from_the_hub(error):
                    raise
                failure = error
        logger.error(describe_failure(failure, **upload))
        return None

    def _push_from_checkpoint(self, checkpoint_folder):
        before = set(self.push_in_progress.jobs) if getattr(self, "push_in_progress", None) else set()
        super()._push_from_checkpoint(checkpoint_folder)
        if getattr(self, "push_in_progress", None):
            for job in self.push_in_progress.jobs:
                if job not in before:
                    job.add_done_callback(_report_upload)


def describe_failure(error: Exception, *, repo_id, folder_path, commit_message, token, revision, **_) -> str:
    """A message that names the files published, those not published, and the command that finishes."""
    folder = Path(folder_path)
    files = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    files = list(filter_repo_objects(files, ignore_patterns=[*_IGNORED]))
    try:
        held = {
            entry.path: entry
            for entry in HfApi().list_repo_tree(repo_id, recursive=True, token=token, revision=revision)
        }
        published = [name for name in files if name in held and _is_same(folder / name, held[name])]
        missing = [name for name in files if name not in published]
        status = f"Published: {', '.join(published) or 'nothing'}. Not published: {', '.join(missing) or 'nothing'}."
    except Exception as second_error:
        status = f"Its files could not be listed ({_describe(second_error)})."
    options = ([f"--revision {revision}"] if revision else []) + [f"--commit-message {shlex.quote(commit_message)}"]
    return (
        f"The run is complete and saved in {folder_path}, but the Hub did not take all of it ({_describe(error)}). "
        f"{status} Finish with:\n"
        f"  {' '.join([_upload_command(repo_id, folder_path), *options])}"
    )


def _upload_command(repo_id: str, folder: str | Path) -> str:
    endpoint = HfApi().endpoint
    excluded = (f"--exclude {shlex.quote(pattern)}" for pattern in _IGNORED)
    words = [*([] if endpoint == _DEFAULT_ENDPOINT else [f"HF_ENDPOINT={endpoint}"]), "hf", "upload", repo_id]
    return " ".join([*words, shlex.quote(str(folder)), ".", *excluded])


def _report_upload(job: Future) -> None:
    try:
        error = job.exception()
    except CancelledError:
        return
    if error is not None:
        logger.warning(
            f"An upload to the Hub failed ({_describe(error)}). What it held is saved in the output directory; the "
            "next save or push_to_hub publishes again."
        )


def _is_from_the_hub(error: Exception) -> bool:
    """Whether an upload failed, rather than the saving of the model before it."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_globals.get("__name__", "").startswith("huggingface_hub")
        and frame.f_code.co_name in ("create_repo", "upload_folder")
        for frame in frames
    )


def _status_of(error: BaseException) -> int | None:
    """Status of HTTP; `None` if there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _may_pass(error: Exception) -> bool:
    status = _status_of(error)
    return status is None or status >= 500 or status in (408, 429)


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _is_same(path: Path, entry) -> bool:
    if getattr(entry, "size", None) != path.stat().st_size:
        return False
    if entry.lfs is not None:
        with path.open("rb") as file:
            return sha_fileobj(file).hex() == entry.lfs.sha256
    return git_hash(path.read_bytes()) == entry.blob_id


def _hub_names(dataset) -> list[str]:
    """Names on the Hub of what a data set was downloaded from, `hf://datasets/user/name@revision/file`."""
    sources = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    names = [source.removeprefix("hf://datasets/").split("@")[0] for source in sources if "hf://datasets/" in source]
    return sorted(set(names))
