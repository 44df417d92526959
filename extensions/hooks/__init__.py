"""What a run does at its saves, at its end and at an error: a command, a message, a copy
in a bucket. Each is an entry of `callbacks`."""

from __future__ import annotations

from toolkit.extension import Extension


class Command(Extension):
    """`callbacks: [{type: run, command: ...}]`."""

    uid = "run"
    name = "A command at saves, the end and errors"
    config = ".config:CommandConfig"
    callback = ".notices:CommandCallback"


class Webhook(Extension):
    """`callbacks: [{type: webhook, url: ...}]`."""

    uid = "webhook"
    name = "A message to an address at saves, the end and errors"
    config = ".config:WebhookConfig"
    callback = ".notices:WebhookCallback"


class Upload(Extension):
    """`callbacks: [{type: upload, to: ...}]`."""

    uid = "upload"
    name = "Copies of saves and states in a bucket; a bare machine goes on from them"
    config = ".config:UploadConfig"
    callback = ".upload:UploadCallback"


AI_TOOLKIT_EXTENSIONS = [Command, Webhook, Upload]
