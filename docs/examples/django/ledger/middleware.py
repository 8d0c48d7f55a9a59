"""What a view's user sees of a switchover: 503 with Retry-After in place of 500."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

import bgpool


class switchover_as_503:  # noqa:N801  # named as in MIDDLEWARE, where functions and classes stand side by side
    """Answers with 503 where a switchover has cut or held a request for too long."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Django calls it with what a view has raised. None leaves the answer to Django."""
        # Django wraps the driver's errors; run() and transactional raise bgpool's own.
        error = exception if isinstance(exception, bgpool.SwitchoverError) else exception.__cause__
        if not isinstance(error, bgpool.SwitchoverError):
            return None
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, bgpool.CommitOutcomeUnknown):
            # To send the request again may apply it twice.
            return HttpResponse(text, status=500, content_type="text/plain")
        return HttpResponse(text, status=503, headers={"Retry-After": "1"}, content_type="text/plain")
