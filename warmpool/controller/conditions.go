// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

const (
	// maxDetail of what a node says, inside a message.
	maxDetail = 256
	// maxProblems in the message of a condition.
	maxProblems = 3
)

// problem is something that somebody has to do something about.
type problem struct {
	reason  string
	message string
}

// severity orders the reasons of problems: what hides the others comes first.
var severity = []string{
	v1alpha1.ReasonTemplateNotFound, v1alpha1.ReasonTemplateInvalid, v1alpha1.ReasonTemplateTooLarge, v1alpha1.ReasonNoEligibleNodes,
	v1alpha1.ReasonTemplateBuildFailed, v1alpha1.ReasonInsufficientCapacity, v1alpha1.ReasonNodeStatusInvalid,
	v1alpha1.ReasonNodeUnreachable, v1alpha1.ReasonNodeSkipped, v1alpha1.ReasonRuntimeClassConflict, v1alpha1.ReasonNameTooLong,
}

// degraded is the condition of a list of problems.
func degraded(problems []problem) metav1.Condition {
	c := metav1.Condition{Type: v1alpha1.ConditionDegraded, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonAsExpected}
	if len(problems) == 0 {
		return c
	}
	slices.SortStableFunc(problems, func(a, b problem) int {
		return slices.Index(severity, a.reason) - slices.Index(severity, b.reason)
	})
	var messages []string
	for i, p := range problems {
		if i == maxProblems {
			messages = append(messages, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		messages = append(messages, p.message)
	}
	c.Status, c.Reason = metav1.ConditionTrue, problems[0].reason
	c.Message = clip(strings.Join(messages, "; "), v1alpha1.MaxMessage)
	return c
}

func condition(kind string, status bool, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: clip(message, v1alpha1.MaxMessage)}
	if status {
		c.Status = metav1.ConditionTrue
	}
	return c
}

// merge puts conditions over old ones; the time of what keeps its status stays.
func merge(old []metav1.Condition, now time.Time, generation int64, conditions ...metav1.Condition) []metav1.Condition {
	merged := slices.Clone(old)
	for _, c := range conditions {
		c.LastTransitionTime, c.ObservedGeneration = metav1.NewTime(now.Truncate(time.Second)), generation
		meta.SetStatusCondition(&merged, c)
	}
	return merged
}

// clip cuts text to a number of bytes, between characters, and marks the cut.
func clip(text string, limit int) string {
	text = strings.ToValidUTF8(text, "�")
	if len(text) <= limit {
		return text
	}
	const mark = "…"
	cut := limit - len(mark)
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + mark
}

func size(bytes int64) string {
	switch {
	case bytes >= 10<<30:
		return fmt.Sprintf("%d GiB", bytes>>30)
	default:
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
