"""Modules that several tools share: models and their images, curves, pages, run folders.

A module is here when at least two tools need it. It must not import a tool, and what
only one tool needs stays in that tool's folder.
"""
