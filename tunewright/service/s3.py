"""S3, by s3fs: whoever does not answer is not waited for without end."""

from __future__ import annotations

import asyncio
from typing import Any

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

SECONDS = 120.0
"""For one request, with all its tries. The timeouts of s3fs begin when a request is sent, which may never be."""


class S3Store(S3FileSystem):
    """For who tries again anyway, and can be told to leave meanwhile: of itself it tries a few times only."""

    retries = 2

    def __init__(self, **options: Any) -> None:
        super().__init__(
            # parts of one size, the last excepted: some stores that speak S3 take no others
            fixed_upload_size=True,
            config_kwargs={"retries": {"mode": "standard", "total_max_attempts": 3}},
            **options,
        )

    async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
        return await asyncio.wait_for(super()._call_s3(method, *arguments, **options), SECONDS)

    call_s3 = sync_wrapper(_call_s3)
