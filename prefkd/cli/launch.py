"""Run a recipe file, in this process or in several through torchrun, for each of which this module is the program."""

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefkd.catalog import load_recipe
from prefkd.cli.bars import bars_as_lines
from prefkd.config import load_config
from prefkd.config.fields import setting
from prefkd.errors import USE_LESS_MEMORY, PrefkdError, explain, first_line


def launch(recipe_path: Path, config_path: Path, overrides: Sequence[str]) -> None:
    """Load a recipe and its config, and run it in this process.

    Raises:
        PrefkdError: If the file is not a recipe.
        ConfigError: With everything that is wrong in the config.
    """
    recipe = load_recipe(recipe_path)
    config = load_config(recipe.Config, config_path, overrides)
    from prefkd.estimate.memory import own_card

    if (card := own_card()) is not None:
        # Imports what loads models, for which a recipe that has none does not wait.
        from prefkd.ranks import torchrun_numbers
        from prefkd.training.settings import TrainingConfig

        training = setting(config, TrainingConfig)
        if training is not None and training.activation_checkpointing == "auto" and training.device != "cpu":
            from prefkd.estimate.settle import settle_for_run

            world_size = torchrun_numbers().get("WORLD_SIZE", 1)
            config = settle_for_run(recipe, recipe_path.stem, config, world_size, card)
    with bars_as_lines():
        recipe.main(config)


def launch_processes(
    options: Mapping[str, str | int], recipe_path: Path, config_path: Path, overrides: Sequence[str]
) -> None:
    """Run a recipe in several processes.

    Args:
        options: torchrun's options, by name with underscores.

    Raises:
        PrefkdError: With what the first process to fail had to say.
        SystemExit: If it failed through a mistake in the program; its trace is on the terminal.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import get_args_parser, run

    torchrun = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    if set(options) == {"nproc_per_node"}:
        torchrun.append("--standalone")  # a free port, so that two runs on one machine do not meet
    torchrun += ["-m", "prefkd.cli.launch", str(recipe_path), str(config_path), *overrides]
    if not os.environ.get("PREFKD_DEBUG"):
        logging.disable(logging.ERROR)  # torchrun's own account of a failure
    arguments = get_args_parser().parse_args(torchrun)
    # torchrun would kill after half a minute, which is short for a step and a checkpoint.
    arguments.signals_to_handle = "SIGHUP,SIGQUIT"
    heard: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, partial(_hand_on, heard)) for number in numbers}
    try:
        run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0 and heard:
            raise SystemExit(128 + heard[0]) from error
        if failure.exitcode < 0:
            name = failure.signal_name()
            raise PrefkdError(f"process {rank} was ended by {name}; if memory ran out, {USE_LESS_MEMORY}") from error
        if failure.exitcode == 130:
            raise KeyboardInterrupt from error
        recorded: Any = failure.error_file_data["message"]
        if failure.exitcode != 2 or not isinstance(recorded, dict):
            raise SystemExit(failure.exitcode) from error
        raise PrefkdError(recorded["message"].removeprefix("PrefkdError: ")) from error
    except SignalException as error:
        raise KeyboardInterrupt from error
    except (ValueError, RendezvousError, DistError) as error:
        raise PrefkdError(f"torchrun cannot start the processes: {first_line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in before.items():
            signal.signal(number, handler)


def _hand_on(heard: list[int], number: int, _frame: object) -> None:
    """Hand a signal on to the processes of torchrun, each of which has a session of its own; without any, end."""
    import psutil

    heard.append(number)
    processes = psutil.Process().children()
    for process in processes:
        process.send_signal(number)
    if not processes:
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def main() -> int:
    """One process of torchrun: what a user can fix is recorded for the parent, which prints it once."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    recipe_path, config_path, *overrides = sys.argv[1:]
    try:
        launch(Path(recipe_path), Path(config_path), overrides)
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:  # a signal that a recipe has heard of
        return end.code if isinstance(end.code, int) else 1
    except Exception as error:
        explanation = explain(error)
        if explanation is None or os.environ.get("PREFKD_DEBUG"):
            # Where another process failed first, this one has lost its partner: torchrun ends it while it waits here.
            time.sleep(1)
            traceback.print_exc()
            return 1
        get_error_handler().record_exception(PrefkdError(explanation))
        return 2
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of gloo sometimes abort a process whose work is done while the interpreter shuts down, and
    # after a failure a thread or NCCL may wait for processes that wait for this one to end.
    os._exit(code)
