// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package approver

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Reason is what an approval or a denial says that it comes from.
const Reason = "VkFirkin"

// requestTimeout bounds a pass over one request.
const requestTimeout = 10 * time.Second

// Add makes a manager decide about certificates by a policy, while it leads.
func Add(m manager.Manager, p Policy, logger *slog.Logger) error {
	r := &reconciler{client: m.GetClient(), policy: p, logger: logger, told: map[types.UID]string{}}
	undecided := predicate.NewPredicateFuncs(func(o client.Object) bool {
		csr, ok := o.(*certificatesv1.CertificateSigningRequest)
		return ok && len(csr.Status.Conditions) == 0 && (csr.Spec.SignerName == certificatesv1.KubeletServingSignerName || csr.Spec.SignerName == certificatesv1.KubeAPIServerClientKubeletSignerName)
	})
	return builder.ControllerManagedBy(m).Named("certificates").
		For(&certificatesv1.CertificateSigningRequest{}, builder.WithPredicates(undecided)).
		Complete(r)
}

// reconciler decides about one request at a time.
type reconciler struct {
	client client.Client
	policy Policy
	logger *slog.Logger

	mu   sync.Mutex
	told map[types.UID]string // guarded by mu; what was logged of requests that wait
}

// Reconcile decides about a request. A Node that changes is seen when the request is looked at again.
func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	csr := &certificatesv1.CertificateSigningRequest{}
	if err := r.client.Get(ctx, req.NamespacedName, csr); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	nodes := &corev1.NodeList{}
	if err := r.client.List(ctx, nodes); err != nil {
		return reconcile.Result{}, fmt.Errorf("list nodes: %w", err)
	}
	d := r.policy.Decide(csr, nodes.Items, time.Now())
	log := r.logger.With("request", csr.Name, "signer", csr.Spec.SignerName, "requester", csr.Spec.Username)
	if d.Verdict == Wait {
		if r.news(csr.UID, d.Message) {
			log.Info("A certificate waits", "why", d.Message)
		}
		return reconcile.Result{RequeueAfter: d.After}, nil
	}
	r.forget(csr.UID)
	if d.Verdict == Ignore {
		return reconcile.Result{}, nil
	}
	condition := certificatesv1.CertificateApproved
	if d.Verdict == Deny {
		condition = certificatesv1.CertificateDenied
	}
	csr = csr.DeepCopy()
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: condition, Status: corev1.ConditionTrue, Reason: Reason, Message: d.Message,
	})
	if err := r.client.SubResource("approval").Update(ctx, csr); err != nil {
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) { // somebody was faster
			return reconcile.Result{RequeueAfter: soon}, nil
		}
		return reconcile.Result{}, fmt.Errorf("decide about certificate request %s: %w", csr.Name, err)
	}
	log.Info("Decided about a certificate", "verdict", d.Verdict.String(), "why", d.Message)
	return reconcile.Result{}, nil
}

// maxTold bounds what is remembered of requests that were deleted while they waited.
const maxTold = 1000

// news tells whether a request waits for something else than when it was looked at last.
func (r *reconciler) news(uid types.UID, message string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told[uid] == message {
		return false
	}
	if len(r.told) >= maxTold {
		clear(r.told)
	}
	r.told[uid] = message
	return true
}

func (r *reconciler) forget(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.told, uid)
}
