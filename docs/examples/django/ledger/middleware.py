"""A middleware that answers 503 with Retry-After, instead of 500, after errors of a switchover."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

import bgpool


class switchover_as_503:  # noqa:N801  # MIDDLEWARE lists functions and classes alike
    """Answer 503 if a switchover has cut a request, or has held it for too long."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Handle an exception of a view. With None, Django makes the answer."""
        # Django wraps the driver's errors; run() and transactional raise bgpool's own.
        error = exception if isinstance(exception, bgpool.SwitchoverError) else exception.__cause__
        if not isinstance(error, bgpool.SwitchoverError):
            return None
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, bgpool.CommitOutcomeUnknown):
            # Not 503: if the client sends the request again, it may be applied twice.
            return HttpResponse(text, status=500, content_type="text/plain")
        return HttpResponse(text, status=503, headers={"Retry-After": "1"}, content_type="text/plain")
