"""grade: a student's functions."""

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, say


def grade_command(args):
    """Grade a student's functions: exit status 0 for all points, 1 for fewer, 2 for misuse."""
    from numpygpt.course import grade

    if args.starter:
        grade.write_starter(args.student)
        say(f"wrote {args.student}: fill it in and run `numpygpt grade {args.student}`")
        return 0
    model, tokenizer = load(args.model)
    results = grade.grade(
        args.student, model, tokenizer, args.adapters, args.only, args.seconds, args.memory
    )
    print(grade.sheet(results))
    if args.gradescope:
        grade.write_gradescope(results, args.gradescope)
    return int(any(result.score < result.check.points for result in results))


def add(command):
    """Their options."""
    p = command(grade_command)
    p.add_argument("student", nargs="?", default="student.py", help="file with their code")
    p.add_argument("--starter", action="store_true", help="write a file to begin with, and end")
    p.add_argument("--adapters", help="file whose names come first; the other is its `student`")
    p.add_argument("--only", nargs="+", default=[], help="grade these functions alone")
    p.add_argument("--gradescope", metavar="JSON", help="also write Gradescope's results.json")
    p.add_argument("--model", **MODEL)
    p.add_argument("--seconds", type=float, default=10, help="of computing, for each function")
    p.add_argument("--memory", type=int, default=2048, help="in MiB, for each function")
