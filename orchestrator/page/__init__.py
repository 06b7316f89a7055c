"""What is shown of a run in a browser: `holdfast ui` and `holdfast report`.

    curves, timeline    pure: few points for long curves; who was at work when, and what happened
    view                reads a run directory and makes one JSON value of it
    document            the page: as files that a server gives out, or all in one
    server              gives it out on loopback, behind a token

The page in `static/` draws the view and asks for it again while a run goes on. It holds no fact that the view
has not, so that what a report shows is what the server showed.
"""
