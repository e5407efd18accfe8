"""grade, course: a student's functions, a class of students, and a course to begin with."""

from pathlib import Path

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, say


def grade_command(args):
    """Grade students' functions: exit status 0 for all points, 1 for fewer, 2 for misuse."""
    from numpygpt.course import grade, kit

    if args.starter:
        grade.write_starter(args.students[0])
        say(f"wrote {args.students[0]}: fill it in and run `numpygpt grade {args.students[0]}`")
        return 0
    rules = kit.read_rules(args.config, args.seconds, args.memory, args.hints, args.only)
    _, tokenizer = load(args.model)
    if args.table:
        return kit.grade_class(
            args.students, args.table, tokenizer, rules, args.adapters, args.seed, args.jobs, say
        )
    if len(args.students) > 1:
        raise ValueError("for several students name a --table to write the points to")
    grading = kit.grade_one(args.students[0], tokenizer, rules, args.adapters, args.seed)
    print(grade.sheet(grading, rules.hints))
    if args.gradescope:
        grade.write_gradescope(grading, args.gradescope, rules.hints, rules.hidden)
    return int(grading.score < grading.points)


def course_command(args):
    """Write a ready course into a folder: handout, starter, solution, points and an autograder."""
    from numpygpt.course import kit

    for path in kit.new(Path(args.folder)):
        print(path)
    say(f"read {args.folder}/HANDOUT.md first; points.toml says what counts and how much")


def add(command):
    """Their options."""
    p = command(grade_command)
    p.add_argument(
        "students", nargs="*", default=["student.py"], help="file with a student's code; with "
        "--table several"
    )  # fmt: skip
    p.add_argument("--starter", action="store_true", help="write a file to begin with, and end")
    p.add_argument("--adapters", help="file whose names come first; the other is its `student`")
    p.add_argument("--only", nargs="+", default=[], help="grade these functions alone")
    p.add_argument("--gradescope", metavar="JSON", help="also write Gradescope's results.json")
    p.add_argument("--config", metavar="TOML", help="points.toml: functions, points, hints, limits")
    p.add_argument("--table", metavar="CSV", help="write a class's points here; goes on if there")
    p.add_argument("--jobs", type=int, default=1, help="students graded at a time, with --table")
    p.add_argument("--hints", choices=["none", "brief", "full"], help="(default: full)")
    p.add_argument("--seed", type=int, help="of the numbers that functions are tried with")
    p.add_argument("--model", **MODEL)
    p.add_argument("--seconds", type=float, help="of computing for each function (default: 10)")
    p.add_argument("--memory", type=int, help="in MiB, for each function (default: 2048)")

    p = command(course_command)
    p.add_argument("what", choices=["new"], help="new: write a course")
    p.add_argument("folder", help="a new folder")
