"""What a shell completes behind `cardialign`: the commands, and of each its options and the words that they take.

All of it is read from the parsers and written into one script, so that a shell answers at once and starts no Python.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SHELLS = ("bash", "zsh")
_PLAIN = re.compile(r"[\w.:/@+=-]+")
_HEAD = """\
# Completion of cardialign in {shell}. Written by `cardialign completion {shell}`: write it again after an update.
{prepare}_cardialign() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command='' group='' first='' lead='' word i
  local options='' values='' takes='' within=0
  COMPREPLY=()
  if [[ $cur == '=' ]]; then cur=''
  elif [[ $prev == '=' ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}
  elif [[ $cur == --*=* ]]; then prev=${{cur%%=*}} lead=${{cur%%=*}}= cur=${{cur#*=}}; fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${{COMP_WORDS[i]}}
    if [[ -n $command ]]; then
      if [[ $word == -- && ' {nested} ' == *" $command "* ]]; then command='' group='' within=0; continue; fi
      within=$((within + 1))
      if [[ $within == 1 && $word != -* ]]; then first=$word; fi
    elif [[ $word != -* ]]; then
      if [[ -n $group ]]; then command="$group $word"
      elif [[ ' {groups} ' == *" $word "* ]]; then group=$word
      else command=$word; fi
    fi
  done
  if [[ -z $command ]]; then
    case $group in
"""
_MIDDLE = """\
    esac
    COMPREPLY=($(compgen -W "$values" -- "$cur"))
    return
  fi
  case "$command $prev" in
"""
_COMMANDS = """\
  esac
  if [[ -n $values ]]; then
    COMPREPLY=($(compgen -P "$lead" -W "$values" -- "$cur"))
    return
  fi
  case $command in
"""
_TAIL = """\
  esac
  if [[ $takes == *" $prev "* || -n $lead ]]; then return; fi
  if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$cur"))
  elif [[ $within == 0 ]]; then COMPREPLY=($(compgen -W "$values" -- "$cur")); fi
}
complete -o default -o bashdefault -F _cardialign cardialign
"""
_OF_ZSH = "autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n"


@dataclass
class Words:
    """Of one command. values: option -> the words that it takes; takes: options whose value is no word of ours; first:
    what its first word may be; less: that word -> the options that are not for it."""

    options: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    takes: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    less: dict[str, set[str]] = field(default_factory=dict)


def words_of(parser: argparse.ArgumentParser, known: Mapping[str, Sequence[str]]) -> Words:
    """What a command takes. known: words for what its parser does not list (`recipe`, `source`), by the argument's
    name."""
    found = Words()
    for action in parser._actions:
        values = plain(map(str, action.choices) if action.choices is not None else known.get(action.dest, ()))
        spelled = plain(option for option in action.option_strings if option.startswith("--"))
        if action.help == argparse.SUPPRESS:
            continue
        if not action.option_strings:
            found.first = found.first or values
            continue
        found.options += spelled
        if action.nargs != 0:
            found.takes += spelled
            found.values |= dict.fromkeys(spelled, values) if values else {}
    for action in parser._actions:
        told = getattr(action, "told", None)
        if told is not None:
            for word in (each for each in found.first if each not in told):
                found.less.setdefault(word, set()).update(action.option_strings)
    return found


def plain(words: Iterable[str]) -> list[str]:
    """Those that a shell takes as they stand, each once: a name of a plug-in may be any text."""
    return [word for word in dict.fromkeys(words) if _PLAIN.fullmatch(word)]


def script_of(shell: str, commands: Mapping[str, Words], nested: Sequence[str]) -> str:
    """The script for `bash` or `zsh`."""
    groups = list(dict.fromkeys(name.split(" ")[0] for name in commands if " " in name))
    head = _HEAD.format(
        shell=shell, prepare=_OF_ZSH if shell == "zsh" else "", groups=" ".join(groups), nested=" ".join(nested)
    )
    lines = [head]
    for group in groups:
        within = [name.partition(" ")[2] for name in commands if name.startswith(f"{group} ")]
        lines.append(f"      {group}) values={shlex.quote(' '.join(within))};;\n")
    top = [*dict.fromkeys(name.split(" ")[0] for name in commands), "--help", "--version"]
    lines.append(f"      *) values={shlex.quote(' '.join(top))};;\n{_MIDDLE}")
    for name, words in commands.items():
        for option, values in words.values.items():
            lines.append(f"    {shlex.quote(f'{name} {option}')}) values={shlex.quote(' '.join(values))};;\n")
    lines.append(_COMMANDS)
    for name, words in commands.items():
        lines.extend(_one_command(name, words))
    return "".join([*lines, _TAIL])


def _one_command(name: str, words: Words) -> Iterator[str]:
    yield f"    {shlex.quote(name)})\n"
    yield f"      takes={shlex.quote(' ' + ' '.join(words.takes) + ' ')} values={shlex.quote(' '.join(words.first))}\n"
    every = shlex.quote(" ".join(words.options))
    if not words.less:
        yield f"      options={every};;\n"
        return
    yield "      case $first in\n"
    for word, less in words.less.items():
        left = [option for option in words.options if option not in less]
        yield f"        {shlex.quote(word)}) options={shlex.quote(' '.join(left))};;\n"
    yield f"        *) options={every};;\n      esac;;\n"
