"""What equi-report says: one file a report, and their functions are its menu, in this order."""

# ruff: noqa: F401, I001
from equitools.report.table import table
from equitools.report.table1 import table1
from equitools.report.table2 import table2
from equitools.report.compare import compare
from equitools.report.curves import curves
from equitools.report.views import views
from equitools.report.tsne import tsne
from equitools.report.attention import attention
from equitools.report.robustness import robustness
from equitools.report.sweep import sweep
from equitools.report.sheet import sheet
from equitools.report.page import page
from equitools.report.prerequisites import prerequisites
from equitools.report.why import why
from equitools.report.verify import verify
from equitools.report.diff import diff
