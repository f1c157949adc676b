// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"errors"
	"log/slog"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kuberecord "k8s.io/client-go/tools/record"
)

// Whoever asked to hear of refusals hears of each: at admission, of a machine, for want of a
// template.
func TestRefusalsAreTold(t *testing.T) {
	var told []string
	env := &environment{
		log: slog.New(slog.DiscardHandler), events: events{kuberecord.NewFakeRecorder(10)}, admission: &admission{},
		refused: func(pod *corev1.Pod, reason, message string) {
			told = append(told, pod.Namespace+"/"+pod.Name+" "+reason+": "+message)
		},
	}
	w := newWorker(env, state{pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "a", UID: "u"}}})
	w.start = t.Context()
	w.refuse(&refusal{Reason: "OutOfcpu", Message: "too many"})
	w.notAcquired(&RefusedError{Reason: "QueueFull", Err: errors.New("64 wait")})
	w.await(&templateWait{reason: "TemplateNotFound", message: "no such template"})
	want := []string{"team/a OutOfcpu: too many", "team/a QueueFull: QueueFull: 64 wait", "team/a TemplateNotFound: no such template"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	env.refused = nil
	w.refuse(&refusal{Reason: "OutOfcpu"}) // nobody wants to know
}
