from quartapp.cli import main

main(prog_name="quartapp")
