"""Write the report of a search, finished or running: report.html and figures."""

import argparse

from tas_lora import cli
from tas_lora.report.page import write_report


def main():
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='work directory of a search')
    parser.add_argument(
        '--score', default='cross_entropy', help='metric to rank by, if the files do not name it'
    )
    parser.add_argument(
        '--rule',
        choices=['less', 'greater'],
        help='which scores are better, if the files do not say (default: inferred from the metric)',
    )
    args = parser.parse_args()
    cli.say(write_report(args.work_dir, args.score, args.rule))


if __name__ == '__main__':
    cli.run(main)
