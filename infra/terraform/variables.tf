variable "region" {
  description = "AWS region of everything here."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must look like eu-central-1."
  }
}

variable "name" {
  description = "Name of the installation; it begins the name of everything. Buckets are global: choose one that is yours."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,28}[a-z0-9]$", var.name))
    error_message = "name must have 4 to 30 characters: small letters, digits and dashes, a letter first, no dash at the end."
  }
}

variable "vpc_id" {
  description = "The network that the cluster joins; not made here, since address plans and exits are an organisation's."
  type        = string

  validation {
    condition     = can(regex("^vpc-[0-9a-f]+$", var.vpc_id))
    error_message = "vpc_id must look like vpc-0123456789abcdef0."
  }
}

variable "private_subnet_ids" {
  description = "Private subnets with a way out (NAT or endpoints), in at least two zones."
  type        = list(string)

  validation {
    condition = length(var.private_subnet_ids) >= 2 && alltrue([
      for id in var.private_subnet_ids : can(regex("^subnet-[0-9a-f]+$", id))
    ])
    error_message = "private_subnet_ids must name at least two subnets, like subnet-0123456789abcdef0."
  }
}

variable "kubernetes_version" {
  description = "Version of the cluster; the manifests are checked against 1.32."
  type        = string
  default     = "1.32"

  validation {
    condition     = can(regex("^1\\.(3[0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version must be 1.30 or newer: the manifests use ValidatingAdmissionPolicy."
  }
}

variable "api_cidrs" {
  description = "Addresses that may reach the cluster's API from outside of the network; none: it has no public address."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.api_cidrs : can(cidrhost(cidr, 0)) && cidr != "0.0.0.0/0"])
    error_message = "api_cidrs must be CIDR blocks, and not 0.0.0.0/0."
  }
}

variable "administrators" {
  description = "ARNs of the IAM roles that administer the cluster."
  type        = set(string)

  validation {
    condition = length(var.administrators) > 0 && alltrue([
      for arn in var.administrators : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:role/.+$", arn))
    ])
    error_message = "administrators must name at least one role, as arn:aws:iam::<account>:role/<name>."
  }
}

variable "cpu_nodes" {
  description = "The pool for services and every step but training: instance type, least and most nodes."
  type = object({
    instance_type = optional(string, "m6i.2xlarge")
    least         = optional(number, 2)
    most          = optional(number, 6)
    disk_gib      = optional(number, 100)
  })
  default = {}

  validation {
    condition     = var.cpu_nodes.least >= 1 && var.cpu_nodes.most >= var.cpu_nodes.least && var.cpu_nodes.disk_gib >= 50
    error_message = "cpu_nodes: least must be at least 1, most not below least, disk_gib at least 50."
  }
}

variable "gpu_nodes" {
  description = "The pool for training, without a node while nothing trains. One GPU an instance: each architecture has a node."
  type = object({
    instance_types = optional(list(string), ["g5.2xlarge"])
    spot           = optional(bool, false) # a reclaimed node costs the time since the last checkpoint, five minutes by default
    most           = optional(number, 3)
    disk_gib       = optional(number, 200)
  })
  default = {}

  validation {
    condition     = length(var.gpu_nodes.instance_types) > 0 && var.gpu_nodes.most >= 1 && var.gpu_nodes.disk_gib >= 100
    error_message = "gpu_nodes: name at least one instance type; most at least 1, disk_gib at least 100."
  }
}

variable "ledger_mode" {
  description = "COMPLIANCE: nobody, not even the account's root, removes an entry early. GOVERNANCE: who has the right may."
  type        = string
  default     = "COMPLIANCE"

  validation {
    condition     = contains(["COMPLIANCE", "GOVERNANCE"], var.ledger_mode)
    error_message = "ledger_mode must be COMPLIANCE or GOVERNANCE."
  }
}

variable "ledger_days" {
  description = "For how many days an entry can not be removed. No default: under COMPLIANCE it can not be taken back."
  type        = number

  validation {
    condition     = var.ledger_days >= 1 && var.ledger_days <= 36500 && floor(var.ledger_days) == var.ledger_days
    error_message = "ledger_days must be a whole number from 1 to 36500."
  }
}

variable "artifact_days" {
  description = "After how many days artifacts of pipeline runs (the prefix kfp/) are deleted; registered models are kept."
  type        = number
  default     = 90

  validation {
    condition     = var.artifact_days >= 7
    error_message = "artifact_days must be at least 7: a run that is retried reads what it made before."
  }
}

variable "monthly_budget_usd" {
  description = "What all of it may cost a month; mails go out at 80 % spent and at 100 % forecast. It stops nothing."
  type        = number

  validation {
    condition     = var.monthly_budget_usd > 0
    error_message = "monthly_budget_usd must be above 0."
  }
}

variable "budget_emails" {
  description = "Who is told of the budget."
  type        = list(string)

  validation {
    condition     = length(var.budget_emails) > 0 && alltrue([for to in var.budget_emails : can(regex("^[^@ ]+@[^@ ]+$", to))])
    error_message = "budget_emails must name at least one address."
  }
}

variable "people" {
  description = "Who may take the role of approver, and who of auditor: ARNs of IAM roles or users. Nobody should be in both."
  type        = object({ approver = optional(list(string), []), auditor = optional(list(string), []) })
  default     = {}

  validation {
    condition     = alltrue([for who in flatten(values(var.people)) : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/", who))])
    error_message = "people must be ARNs of IAM roles or users: an account's root would let in everybody of the account."
  }

  validation {
    condition     = length(setintersection(var.people.approver, var.people.auditor)) == 0
    error_message = "people names somebody as approver and as auditor: who decides does not audit."
  }
}
