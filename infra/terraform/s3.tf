locals {
  buckets = {
    data      = "${var.name}-data"
    artifacts = "${var.name}-artifacts"
    ledger    = "${var.name}-ledger"
    backups   = "${var.name}-backups"
    logs      = "${var.name}-access-logs"
  }
  # Written out, so that a plan shows the policies whole before anything is made.
  arn = { for key, bucket in local.buckets : key => "arn:${local.partition}:s3:::${bucket}" }
  expiries = {
    artifacts = { prefix = "kfp/", days = var.artifact_days }
    backups   = { prefix = "", days = 90 }
    logs      = { prefix = "", days = 365 }
  }
  logged = setsubtract(keys(local.buckets), ["logs"])
}

resource "aws_s3_bucket" "all" {
  for_each = local.buckets

  # checkov:skip=CKV_AWS_144: copies in a second region double the cost; versions and locks guard against people
  # checkov:skip=CKV2_AWS_62: nothing listens; `dermaflow trigger` asks for new data
  # checkov:skip=CKV_AWS_18: all but the bucket of logs are logged, by aws_s3_bucket_logging.all
  bucket              = each.value
  object_lock_enabled = each.key == "ledger" # can only be given when a bucket is made
  force_destroy       = false

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_versioning" "all" {
  for_each = local.buckets

  bucket = aws_s3_bucket.all[each.key].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_public_access_block" "all" {
  for_each = local.buckets

  bucket                  = aws_s3_bucket.all[each.key].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "all" {
  for_each = local.buckets

  bucket = aws_s3_bucket.all[each.key].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "all" {
  for_each = local.buckets

  bucket = aws_s3_bucket.all[each.key].id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = each.key == "logs" ? "AES256" : "aws:kms" # the log delivery service can not use a customer's key
      kms_master_key_id = each.key == "logs" ? null : aws_kms_key.main.arn
    }
  }
}

resource "aws_s3_bucket_logging" "all" {
  for_each = local.logged

  bucket        = aws_s3_bucket.all[each.key].id
  target_bucket = aws_s3_bucket.all["logs"].id
  target_prefix = "${each.key}/"
}

resource "aws_s3_bucket_lifecycle_configuration" "all" {
  for_each = local.buckets

  # checkov:skip=CKV_AWS_300: the first rule does, for every bucket; checkov does not read it beside dynamic ones

  bucket     = aws_s3_bucket.all[each.key].id
  depends_on = [aws_s3_bucket_versioning.all]

  rule {
    id     = "unfinished-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  # What was replaced or deleted goes for good after a while; not in the ledger, whose versions are its record.
  dynamic "rule" {
    for_each = each.key == "ledger" ? [] : [30]

    content {
      id     = "old-versions"
      status = "Enabled"

      filter {}

      noncurrent_version_expiration {
        noncurrent_days = rule.value
      }
    }
  }

  dynamic "rule" {
    for_each = { for bucket, expiry in local.expiries : bucket => expiry if bucket == each.key }

    content {
      id     = "expiry"
      status = "Enabled"

      filter {
        prefix = rule.value.prefix
      }

      expiration {
        days = rule.value.days
      }
    }
  }
}

resource "aws_s3_bucket_object_lock_configuration" "ledger" {
  bucket     = aws_s3_bucket.all["ledger"].id
  depends_on = [aws_s3_bucket_versioning.all]

  rule {
    default_retention {
      mode = var.ledger_mode
      days = var.ledger_days
    }
  }
}

resource "aws_s3_bucket_policy" "all" {
  for_each = local.buckets

  bucket     = aws_s3_bucket.all[each.key].id
  policy     = data.aws_iam_policy_document.bucket[each.key].json
  depends_on = [aws_s3_bucket_public_access_block.all]
}

data "aws_iam_policy_document" "bucket" {
  for_each = local.buckets

  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [local.arn[each.key], "${local.arn[each.key]}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  # An entry is made once: a write that does not ask for "only if nothing is there" is refused, whoever sends it.
  dynamic "statement" {
    for_each = each.key == "ledger" ? [1] : []

    content {
      sid       = "AppendOnly"
      effect    = "Deny"
      actions   = ["s3:PutObject"]
      resources = ["${local.arn[each.key]}/*"]

      principals {
        type        = "*"
        identifiers = ["*"]
      }

      condition {
        test     = "Null"
        variable = "s3:if-none-match"
        values   = ["true"]
      }
    }
  }

  dynamic "statement" {
    for_each = each.key == "ledger" ? [1] : []

    content {
      sid    = "NothingIsRemoved"
      effect = "Deny"
      actions = [
        "s3:DeleteObject",
        "s3:DeleteObjectVersion",
        "s3:BypassGovernanceRetention",
      ]
      resources = ["${local.arn[each.key]}/*"]

      principals {
        type        = "*"
        identifiers = ["*"]
      }
    }
  }

  dynamic "statement" {
    for_each = each.key == "logs" ? [1] : []

    content {
      sid       = "LogDelivery"
      actions   = ["s3:PutObject"]
      resources = ["${local.arn[each.key]}/*"]

      principals {
        type        = "Service"
        identifiers = ["logging.s3.amazonaws.com"]
      }

      condition {
        test     = "StringEquals"
        variable = "aws:SourceAccount"
        values   = [local.account]
      }
    }
  }
}
