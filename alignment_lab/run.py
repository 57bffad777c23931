def execute(spec, run):
    print(spec)
