"""`type: report`, `run.py report`: one HTML page of a run."""

from toolkit.extension import Extension


class ReportExtension(Extension):
    uid = "report"
    name = "Report"
    purpose = "see a run on one page: samples over steps, curves, settings, dataset, files"

    @classmethod
    def get_config(cls) -> type:
        from extensions.report.config import ReportConfig

        return ReportConfig

    @classmethod
    def get_process(cls) -> type:
        from extensions.report.process import ReportProcess

        return ReportProcess


AI_TOOLKIT_EXTENSIONS = [ReportExtension]
